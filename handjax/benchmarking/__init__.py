"""Time models, operations and updates."""
