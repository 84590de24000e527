"""Checkpoints: write, resume, consolidate, sharded or not."""
