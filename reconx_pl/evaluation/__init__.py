"""Choosing data, calling the chain, scoring, tables and reports; baselines, ablations, restarts."""
