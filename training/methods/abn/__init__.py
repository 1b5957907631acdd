"""Attention branch and perception branch (ST-ABN)."""
