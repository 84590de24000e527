"""Approximate poses of a learnt estimator, polished by bundle adjustment."""
