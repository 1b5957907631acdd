"""Execution times difficulty."""
