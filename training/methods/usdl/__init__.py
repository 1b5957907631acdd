"""Uncertainty-aware score distribution learning (USDL)."""
