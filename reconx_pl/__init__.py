"""ReconX for PyTorch Lightning: a few photographs become a 3D scene (Liu et al., arXiv 2408.16767)."""

import os

__version__ = "0.1.0"

# OpenMP threads that spin while they wait are many times slower beside busy neighbours; read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
