"""Files: atomic writes, checksums, JSON, tensors and weights without unpickling."""
