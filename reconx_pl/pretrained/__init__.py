"""Pretrained weights: which releases there are, fetch, verify and publish them."""
