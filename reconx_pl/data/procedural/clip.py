"""A seed becomes a scene, a camera path, a clip."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from reconx_pl.data.procedural.clutter import clutter
from reconx_pl.data.procedural.imperfect import imperfect_clip
from reconx_pl.data.procedural.landscapes import landscape
from reconx_pl.data.procedural.looks import Look
from reconx_pl.data.procedural.paths import CameraPath, choose_path
from reconx_pl.data.procedural.primitives import Array, Scene, SceneBuilder
from reconx_pl.data.procedural.render import Rendering, depth_confidence, render_scene
from reconx_pl.data.procedural.rooms import room
from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.cameras import resize_cameras, unproject
from reconx_pl.geometry.point_maps import cloud_from_maps
from reconx_pl.types import Cameras, Clip, PointCloud, PointMap

Kind = Literal["room", "landscape", "clutter"]
Variety = Literal["plain", "varied", "estimated"]
DATASET = "procedural"
_SCENES: Mapping[Kind, Callable[[SceneBuilder], tuple[Scene, Array, Array]]] = {
    "room": room,
    "landscape": landscape,
    "clutter": clutter,
}
MAX_GAP = 4.0  # beyond, the path leaves the scene
_LAYOUTS = 40  # tried for a seed before it is given up; the first or second serves nearly always


@dataclass(frozen=True)
class ProceduralScene:
    """A scene with the path of its camera."""

    seed: int
    kind: Kind
    scene: Scene
    path: CameraPath


def procedural_scene(
    seed: int, kind: Kind | None = None, gap: float = 1.0, variety: Variety = "plain"
) -> ProceduralScene:
    """The scene and the path that belong to a seed.

    Args:
        seed: >= 0; every seed is another scene.
        kind: None lets the seed choose: of plain scenes a room or a landscape, of the others also clutter.
        gap: scales the distance between the two ends of the path, in (0, 4]; above 1 they share less of the scene. In a
            room the walls bound that distance.
        variety: see ``procedural_clip``.

    Raises:
        ConfigurationError: an argument out of range.
        BadSceneError: no path of this gap fits into any layout of the seed.
    """
    if seed < 0:
        raise ConfigurationError(f"a procedural seed is 0 or more, got {seed}")
    if kind is not None and kind not in _SCENES:
        raise ConfigurationError(f"kind is one of {', '.join(_SCENES)}, or None; got {kind!r}")
    if variety not in get_args(Variety):
        raise ConfigurationError(f"variety is one of {', '.join(get_args(Variety))}, got {variety!r}")
    if not 0 < gap <= MAX_GAP:
        raise ConfigurationError(f"gap scales the baseline and lies in (0, {MAX_GAP:g}], got {gap}")
    rng = np.random.default_rng([seed, 0x5CE4E])
    draw = rng.random()
    if kind is not None:
        chosen = kind
    elif variety == "plain":
        chosen = "room" if draw < 0.6 else "landscape"
    else:
        chosen = "room" if draw < 0.35 else "landscape" if draw < 0.6 else "clutter"
    for layout in range(_LAYOUTS):
        look = None if variety == "plain" else Look(np.random.default_rng([seed, 0x1007, layout]))
        scene, start, target = _SCENES[chosen](SceneBuilder(rng, look))
        path = choose_path(scene, rng, start, target, gap)
        if path is not None:
            return ProceduralScene(seed, chosen, scene, path)
    raise BadSceneError(
        f"procedural seed {seed}: no camera path with gap {gap:g} fits into the {chosen}; use a smaller gap"
    )


def procedural_clip(
    seed: int,
    frames: int = 8,
    size: tuple[int, int] = (128, 128),
    kind: Kind | None = None,
    *,
    points: int = 16384,
    gap: float = 1.0,
    fps: float = 8.0,
    samples: int = 2,
    variety: Variety = "plain",
) -> Clip:
    """Render a clip with everything a shard can hold.

    Args:
        seed, kind, gap: see ``procedural_scene``.
        frames: T >= 2, evenly spaced along the path.
        size: rows and columns, pixels.
        points: size of the cloud that the first and the last frame see. Where they have fewer pixels with depth, the
            same two views are cast again with finer pixels, so that the cloud always has this size.
        fps: frames a second that the clip claims.
        samples: colour rays along each side of a pixel.
        variety: "plain" has few kinds of things and textures. "varied" has more of both, highlights, thin things and
            clutter. "estimated" is varied too, and its depth, cloud and cameras have the errors of estimators, its
            frames those of a camera's exposure: see ``imperfect.imperfect_clip``.

    Returns:
        A clip with exact depth, infinite where a ray meets nothing (the sky), a DUSt3R-like confidence, and a cloud in
        farthest-point order; metres. "estimated" is none of it exactly.
    """
    if frames < 2:
        raise ConfigurationError(f"a clip needs a first and a last frame, got frames = {frames}")
    _check_size(size)
    if samples < 1:
        raise ConfigurationError(f"samples counts colour rays along a pixel's side and is 1 or more, got {samples}")
    made = procedural_scene(seed, kind, gap, variety)
    cameras = made.path.cameras(np.linspace(0.0, 1.0, frames), *size)
    seen = render_scene(made.scene, cameras, samples)
    ends = [0, frames - 1]
    depth = seen.depth[ends]
    confidence = depth_confidence(depth, seen.cosine[ends])
    cloud = _cloud(made.scene, cameras[ends], Rendering(seen.frames[ends], depth, seen.cosine[ends]), points, seed)
    clip = Clip(
        key=clip_key(seed, kind, variety),
        dataset=DATASET,
        scene=f"{made.kind}-{seed:08d}",
        frames=seen.frames,
        cameras=cameras,
        frame_indices=tuple(range(frames)),
        fps=fps,
        caption=made.scene.caption,
        depth=torch.where(depth > 0, depth, torch.inf),
        confidence=confidence,
        cloud=cloud,
    )
    return imperfect_clip(clip, np.random.default_rng([seed, 0x1337])) if variety == "estimated" else clip


def procedural_views(
    seed: int,
    positions: Sequence[float],
    size: tuple[int, int] = (128, 128),
    kind: Kind | None = None,
    *,
    gap: float = 1.0,
    samples: int = 2,
) -> tuple[Tensor, Tensor, Cameras]:
    """Render any views along the path of ``procedural_clip``; its frame i of T stands at i / (T - 1).

    Args:
        positions: V numbers in [0, 1].
        seed, size, kind, gap, samples: as given to ``procedural_clip``.

    Returns:
        frames [V, 3, H, W] uint8, depth [V, H, W] float32 (metres, 0 = none), V cameras.
    """
    at = np.asarray(positions, dtype=np.float64)
    if at.ndim != 1 or len(at) == 0 or not ((at >= 0) & (at <= 1)).all():
        raise ConfigurationError(f"positions are a list of numbers in [0, 1], got {positions}")
    _check_size(size)
    made = procedural_scene(seed, kind, gap)
    cameras = made.path.cameras(at, *size)
    seen = render_scene(made.scene, cameras, samples)
    return seen.frames, seen.depth, cameras


def _cloud(scene: Scene, ends: Cameras, seen: Rendering, points: int, seed: int) -> PointCloud:
    """Exactly ``points`` points of the surfaces that two views see, in farthest-point order."""
    pixels = int((seen.depth > 0).sum())
    if pixels < points:
        # an eighth to spare: the share of sky changes a little with the pixels
        finer = math.ceil(math.sqrt(1.125 * points / max(pixels, 1)))
        ends = resize_cameras(ends, ends.height * finer, ends.width * finer)
        seen = render_scene(scene, ends, samples=1)
    point_map = PointMap(unproject(seen.depth, ends), depth_confidence(seen.depth, seen.cosine), seen.depth > 0)
    generator = torch.Generator().manual_seed(seed)
    cloud = cloud_from_maps(point_map, seen.frames.float() / 255, points, generator=generator)
    if len(cloud) < points:
        raise BadSceneError(
            f"procedural seed {seed}: its first and last view see fewer than {points} points; ask for fewer"
        )
    return cloud


def clip_key(seed: int, kind: Kind | None = None, variety: Variety = "plain") -> str:
    """The key of a seed's clip in a shard."""
    words = [DATASET, *([] if variety == "plain" else [variety]), *([] if kind is None else [kind])]
    return f"{'-'.join(words)}-{seed:08d}"


def _check_size(size: tuple[int, int]) -> None:
    if len(size) != 2 or min(size) < 8:
        raise ConfigurationError(f"size is (rows, columns) of at least 8 pixels, got {size}")
