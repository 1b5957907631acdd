"""Temporal parsing transformer (TPT)."""
