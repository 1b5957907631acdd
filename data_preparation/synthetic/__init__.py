"""Drawn data for tests and demonstrations: dives in MTL-AQA's layout."""
