"""Hand models in MANO's file format, and their skinning."""
