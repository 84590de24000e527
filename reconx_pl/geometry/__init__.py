"""Cameras, point maps, farthest point sampling, and the estimator protocol."""
