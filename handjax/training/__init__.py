"""Train the stages of a run: launch, loop, update, logs, resume."""
