"""Defaults, checks, files and flags of a run's config."""
