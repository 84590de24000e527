"""Files: atomic writes, checksums, JSON, configs, tensors and weights without unpickling."""
