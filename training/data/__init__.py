"""What a training step sees."""

from training import _torchvision as _torchvision  # before torchvision
