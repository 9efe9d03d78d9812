"""Hands in photos: where they are, how they are turned, and their landmarks."""
