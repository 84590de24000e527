"""Folders as reconstructions leave them, without the work: small pictures, cameras on a ring, files by the package."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reconx_pl.files.identity import plain_settings
from reconx_pl.files.json_files import write_json
from reconx_pl.files.tensors import camera_tensors, cloud_tensors, save_tensors
from reconx_pl.reconstruction.files import copy, write_cameras
from reconx_pl.reconstruction.settings import (
    FIT,
    FLYTHROUGH,
    FRAMES,
    GENERATION,
    GEOMETRY,
    PHOTOGRAPHS,
    ReconstructionConfig,
)
from reconx_pl.reconstruction.stages import Stage, stage_record
from reconx_pl.reconstruction.views import read_views
from reconx_pl.splatting.io.ply import save_ply
from reconx_pl.types import Cameras, Gaussians, PointCloud
from reconx_pl.visualization.video import write_mp4

HEIGHT, WIDTH, POINTS = 48, 64, 900
NOTES = {FIT: ["7 Gaussians <fitted> & kept"], PHOTOGRAPHS: ["a.jpg & b.jpg were cropped"]}
COLMAP, DUST3R = "COLMAP, pycolmap 4: matching=auto", "DUSt3R 0123456789abcdef options"


def ring(views: int, radius: float = 2.0) -> Cameras:
    """Level cameras on a circle about the y axis (down), looking at the origin; the first stands at -z."""
    poses = torch.eye(4).repeat(views, 1, 1)
    for view in range(views):
        turn = 2 * math.pi * view / views
        forward = torch.tensor([math.sin(turn), 0.0, math.cos(turn)])
        down = torch.tensor([0.0, 1.0, 0.0])
        poses[view, :3, :3] = torch.stack([torch.linalg.cross(down, forward), down, forward])
        poses[view, 2, 3] = radius
    lens = torch.tensor([[60.0, 0, WIDTH / 2], [0, 60.0, HEIGHT / 2], [0, 0, 1]])
    return Cameras(poses, lens.repeat(views, 1, 1), HEIGHT, WIDTH)


def pictures(count: int, seed: int = 0) -> Tensor:
    """[count, 3, HEIGHT, WIDTH] uint8, each of one colour of its own."""
    colors = torch.randint(30, 226, (count, 3, 1, 1), generator=torch.Generator().manual_seed(seed))
    return colors.to(torch.uint8).expand(-1, -1, HEIGHT, WIDTH).contiguous()


def reconstructed(
    out: Path,
    names: Sequence[str],
    stages: Sequence[str],
    *,
    estimator: str = COLMAP,
    view_generator: str | None = None,
    closed: bool = False,
    kept: Sequence[str] = (),
    reached: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Fill ``out`` with what these stages leave, and return the summary.

    Args:
        out: the folder.
        names: of the photographs.
        stages: those that left their files.
        estimator, view generator, closed: as the summary has them.
        kept: stages of an earlier run.
        reached: stages of the run that the summary is of; None is all that left files.
    """
    records = {}
    for number, name in enumerate(stages):
        folder = out / "stages" / f"{name}-{number:012x}"
        stage = Stage(name, "0" * 64, folder, 1.5 + number, 10**9, None, tuple(NOTES.get(name, [])), name in kept)
        records[name] = stage_record(stage)
        folder.mkdir(parents=True, exist_ok=True)
    photographs = pictures(len(names))

    def folder(name: str) -> Path:
        return out / "stages" / records[name]["folder"]

    _views(out, names, photographs, folder(PHOTOGRAPHS), folder(GEOMETRY), closed)
    if GENERATION in stages:
        for clip in range(len(names) - (not closed)):
            save_tensors({"frames": pictures(5, clip)}, folder(GENERATION) / f"clip-{clip:02d}.safetensors")
        write_mp4(pictures(4).float() / 255, out / "generated.mp4", 8)
    if FIT in stages:
        shown = {"rendered": 255 - photographs, "photographs": photographs}
        save_tensors(shown, folder(FIT) / "rendered.safetensors")
        psnr = [20.25 + view for view in range(len(names))]
        loss = [1 / (1 + step) for step in range(50)]
        numbers = {"gaussians": 12345, "frames": len(names), "psnr_of_photographs": psnr, "loss": loss}
        write_json(folder(FIT) / "fit.json", numbers)
        copy(save_ply(_gaussians(), folder(FIT) / "scene.ply"), out / "scene.ply")
        (out / "scene.html").write_text("<html></html>")
    if FLYTHROUGH in stages:
        for video in ("flythrough.mp4", "flythrough_depth.mp4"):
            write_mp4(pictures(4).float() / 255, out / video, 8)
    shown_stages = [name for name in stages if reached is None or name in reached]
    summary = {
        "complete": True,
        "name": out.name,
        "version": "0.1.0",
        "photographs": [{"name": name, "sha256": "0" * 64} for name in names],
        "views": list(names),
        "closed": closed,
        "estimator": estimator,
        "view_generator": view_generator,
        "device": "cpu",
        "last_stage": shown_stages[-1],
        "stages": [records[name] for name in shown_stages],
        "settings": plain_settings(ReconstructionConfig()),
    }
    write_json(out / "reconstruction.json", summary)
    return summary


WHOLE = (PHOTOGRAPHS, GEOMETRY, FRAMES, FIT, FLYTHROUGH)
GENERATED = (PHOTOGRAPHS, GEOMETRY, GENERATION, FRAMES, FIT, FLYTHROUGH)


def _views(out: Path, names: Sequence[str], images: Tensor, photographs: Path, geometry: Path, closed: bool) -> None:
    count = len(names)
    save_tensors({"images": images}, photographs / "photographs.safetensors")
    described = {
        "names": names, "sources": names, "focals": [None] * count, "lenses": [0] * count, "notes": [], "digest": "",
    }  # fmt: skip
    (photographs / "photographs.json").write_text(json.dumps(described))
    generator = torch.Generator().manual_seed(0)
    cloud = PointCloud(
        torch.rand(POINTS, 3, generator=generator) - 0.5, torch.rand(POINTS, 3, generator=generator), torch.ones(POINTS)
    )
    save_tensors({**camera_tensors(ring(count)), **cloud_tensors(cloud)}, geometry / "geometry.safetensors")
    (geometry / "views.json").write_text(json.dumps({"photographs": list(range(count)), "closed": closed}))
    write_cameras(read_views(photographs, geometry, out.name), out)


def _gaussians() -> Gaussians:
    generator = torch.Generator().manual_seed(0)
    return Gaussians(
        means=torch.randn(7, 3, generator=generator),
        quaternions=torch.randn(7, 4, generator=generator),
        log_scales=torch.randn(7, 3, generator=generator) - 3,
        opacity_logits=torch.randn(7, generator=generator),
        sh=torch.randn(7, 1, 3, generator=generator),
    )
