"""TSA-Net: attention within the tube of boxes around the athlete."""
