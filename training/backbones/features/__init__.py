"""Precomputed features."""
