"""Multi-path uncertainty-aware score distribution learning (MUSDL): a distribution for each judge."""
