"""Blocks with more than one user, or with a literature of their own."""
