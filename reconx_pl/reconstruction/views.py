"""Photographs with their cameras, in the order of visiting, cut to the size that a later stage works at."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reconx_pl.data.formats.scene import RawScene, frames_in_memory
from reconx_pl.data.packing.clip_sampling import crop_depth, crop_images
from reconx_pl.data.photos.photographs import Photographs
from reconx_pl.files.tensors import cameras_of, cloud_of, load_tensors
from reconx_pl.geometry.cameras import resize_and_crop
from reconx_pl.reconstruction.input_views import InputViews
from reconx_pl.reconstruction.settings import KEY
from reconx_pl.types import PointCloud

GEOMETRY_FILE, VIEWS_FILE = "geometry.safetensors", "views.json"
PIXELS_FILE, PHOTOGRAPHS_FILE = "photographs.safetensors", "photographs.json"


@dataclass(frozen=True)
class Views:
    """C photographs of one size, C >= 1.

    Attributes:
        scene: them with their cameras and points, for every other format.
        names: of the files, as they were given.
        closed: whether the last is a neighbour of the first.
        depth: [C, H, W] along the optical axis, world units, 0 = none; None where points are all there is.
        confidence: [C, H, W] of the depth, on DUSt3R's scale.
    """

    scene: RawScene
    names: tuple[str, ...]
    closed: bool
    depth: Tensor | None
    confidence: Tensor | None

    @property
    def cloud(self) -> PointCloud:
        assert self.scene.cloud is not None
        return self.scene.cloud


def read_photographs(folder: Path) -> Photographs:
    """What the first stage left in its folder."""
    described = json.loads((folder / PHOTOGRAPHS_FILE).read_text(encoding="utf-8"))
    images = load_tensors(folder / PIXELS_FILE)["images"].float().div_(255)
    plain: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in described.items()
    }
    return Photographs(images=images, **plain)


def read_names(photographs: Path) -> tuple[str, ...]:
    """Names of all photographs that the first stage left in its folder, whether they found a place or not."""
    return tuple(json.loads((photographs / PHOTOGRAPHS_FILE).read_text(encoding="utf-8"))["names"])


def read_views(photographs: Path, geometry: Path, name: str) -> Views:
    """The views that the first two stages left in their folders; ``name`` is the scene's."""
    chosen = json.loads((geometry / VIEWS_FILE).read_text(encoding="utf-8"))
    every = read_names(photographs)
    pixels = load_tensors(photographs / PIXELS_FILE)["images"].permute(0, 2, 3, 1).numpy()  # [V, H, W, 3] uint8
    tensors = load_tensors(geometry / GEOMETRY_FILE)
    cameras = cameras_of(tensors)
    names = tuple(every[at] for at in chosen["photographs"])
    frames = frames_in_memory(pixels[chosen["photographs"]], cameras, names)
    scene = RawScene(name, "photographs", frames, geometry, cloud=cloud_of(tensors))
    return Views(scene, names, bool(chosen["closed"]), tensors.get("depth"), tensors.get("confidence"))


def input_views(views: Views, height: int, width: int) -> InputViews:
    """Resized with Lanczos so that the short side fits, and cropped around the centre; maps by nearest value."""
    images, cameras = crop_images(views.scene, range(len(views.scene)), height, width)
    _, resized, offset = resize_and_crop(views.scene.cameras, height, width)

    def cropped(maps: Tensor | None) -> Tensor | None:
        return (
            None if maps is None else torch.stack([crop_depth(one.numpy(), cameras, resized, offset) for one in maps])
        )

    return InputViews(
        key=KEY,
        images=images.float() / 255,
        cameras=cameras.to(dtype=views.cloud.points.dtype),
        cloud=views.cloud,
        depth=cropped(views.depth),
        confidence=cropped(views.confidence),
        measured=False,
        indices=tuple(range(len(views.names))),
        dataset=views.scene.dataset,
        scene=views.scene.name,
        closed=views.closed,
    )


def fit_size(views: Views, short_side: int) -> tuple[int, int]:
    """Rows and columns of the photographs reduced so that the shorter is ``short_side``; smaller ones stay."""
    height, width = views.scene.frames[0].height, views.scene.frames[0].width
    scale = min(1.0, short_side / min(height, width))
    return round(height * scale), round(width * scale)
