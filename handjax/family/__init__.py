"""What a family of models shares with the trainer: stages, constants, capabilities."""
