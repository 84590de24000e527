"""Cameras, paths and point maps; estimators, DUSt3R and the global alignment."""
