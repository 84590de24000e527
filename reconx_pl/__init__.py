"""ReconX for PyTorch Lightning: a few photographs become a 3D scene (Liu et al., arXiv 2408.16767)."""

__version__ = "0.1.0"
