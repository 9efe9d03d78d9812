"""Errors of meshes in millimetres, and distances between sets of features."""
