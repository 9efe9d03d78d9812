"""Explore codebooks and masked sampling; what the notebooks show."""
