"""Score, attributes and captions (C3D-AVG-MTL)."""
