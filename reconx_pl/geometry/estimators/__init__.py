"""Estimators of cameras and point maps."""
