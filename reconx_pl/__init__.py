"""ReconX for PyTorch Lightning: a few photographs become a 3D scene (Liu et al., arXiv 2408.16767)."""

import os
from typing import Any

from reconx_pl.version import __version__

__all__ = ["ReconX", "Scene", "__version__"]

# OpenMP threads that spin while they wait are many times slower beside busy neighbours; read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> Any:
    """``ReconX`` and ``Scene``, imported when they are asked for: torch takes seconds to load."""
    if name in ("ReconX", "Scene"):
        from reconx_pl import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
