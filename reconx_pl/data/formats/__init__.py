"""Readers of raw formats, one file a format; ``readers`` chooses between them."""
