"""Control images and captions for ControlNet's training scripts."""
