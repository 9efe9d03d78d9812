"""Convolutions, normalization and image operations that run fast on every backend."""
