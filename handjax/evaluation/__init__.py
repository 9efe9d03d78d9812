"""Measure a model: protocols, reports, submissions."""
