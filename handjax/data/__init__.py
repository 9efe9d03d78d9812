"""Batches of a training stage, and where data sets lie."""
