"""Group-aware contrastive regression (CoRe)."""
