"""TimeSformer."""
