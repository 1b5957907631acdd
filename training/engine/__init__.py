"""How a model is trained: step (one optimizer step), loop (epochs), state (checkpoints), prediction (validation and test),
feature_fit (methods without gradient steps), trainer (the common base of loop and feature_fit)."""
