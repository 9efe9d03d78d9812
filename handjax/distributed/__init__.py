"""Device meshes, processes, and the shares of an evaluation."""
