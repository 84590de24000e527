"""The shard: schema, writing, reading, streaming, and what is precomputed into it."""
