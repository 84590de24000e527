"""Confidence-aware 3D Gaussian splatting: renderers, losses, fit, export."""
