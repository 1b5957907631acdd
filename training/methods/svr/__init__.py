"""Support vector regression on frozen features."""
