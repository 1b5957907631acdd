"""MSCADC."""
