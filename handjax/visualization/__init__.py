"""Render meshes, draw overlays and contact sheets, export GLB and OBJ."""
