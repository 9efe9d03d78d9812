"""Files that are complete or absent, and readers of files from strangers."""
