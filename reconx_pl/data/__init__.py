"""Shards, readers of raw formats, packing, the data module, procedural scenes."""
