"""Skin, light and lens: what makes a rendered hand look like a photograph."""
