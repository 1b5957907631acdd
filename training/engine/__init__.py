"""How a model is trained: step (one optimizer step), loop (epochs), state (save and resume), prediction, at_once (no steps)."""
