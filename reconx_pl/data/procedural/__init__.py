"""Procedural scenes: seeded rooms and landscapes, ray-cast with exact depth.

The kernels are compiled by numba at the first frame (some seconds, cached afterwards), so that this package is imported
where it is used and not with ``reconx_pl``.
"""

from reconx_pl.data.procedural.clip import (
    ProceduralScene,
    clip_key,
    procedural_clip,
    procedural_scene,
    procedural_views,
)
from reconx_pl.data.procedural.render import depth_confidence, render_scene
from reconx_pl.data.procedural.write import write_procedural

__all__ = [
    "ProceduralScene",
    "clip_key",
    "depth_confidence",
    "procedural_clip",
    "procedural_scene",
    "procedural_views",
    "render_scene",
    "write_procedural",
]
