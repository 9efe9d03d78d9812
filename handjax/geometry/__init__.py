"""Joints, rotations, cameras, crops and mesh hierarchies."""
