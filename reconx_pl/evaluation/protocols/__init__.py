"""Published protocols: their files, indices, scenes and tables."""
