"""Metrics, the evaluation runner, baselines, the report."""
