"""Raw scenes to clips to shards."""
