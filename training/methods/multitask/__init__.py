"""Score, attributes and captions."""
