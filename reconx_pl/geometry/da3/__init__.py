"""Depth-Anything-3 (Lin et al. 2025): any number of images to depth, cameras and confidence in one pass."""
