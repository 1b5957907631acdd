"""Regression of execution and difficulty."""
