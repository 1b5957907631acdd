"""Data sets, splits, sampling and the loader."""
