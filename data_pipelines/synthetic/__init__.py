"""Annotated renders of the built-in hand."""
