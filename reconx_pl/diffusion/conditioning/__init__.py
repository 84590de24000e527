"""Structure, image and text tokens."""
