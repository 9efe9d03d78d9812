"""Checkpoints of a workdir: write, verify, load for inference."""
