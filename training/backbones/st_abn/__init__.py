"""ST-ABN."""
