"""Noise schedule, objective, guidance and samplers."""
