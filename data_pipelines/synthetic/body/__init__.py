"""A synthetic skinned body in SMPL's format, and pictures of it or of another one."""
