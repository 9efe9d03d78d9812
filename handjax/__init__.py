"""handjax: 3-D hand meshes from one RGB image, in JAX."""

__version__ = "0.1.0"
