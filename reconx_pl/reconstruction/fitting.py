"""Stages "fit" and "flythrough": Gaussians, and a flight through them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from reconx_pl.evaluation.color_maps import depth_colors
from reconx_pl.evaluation.flight import fly
from reconx_pl.evaluation.metrics import psnr
from reconx_pl.evaluation.painter import scene_generator
from reconx_pl.evaluation.records import write_json
from reconx_pl.evaluation.scene import loss_network
from reconx_pl.evaluation.video import write_mp4
from reconx_pl.geometry.camera_paths import PATHS
from reconx_pl.reconstruction.frames import FitInput
from reconx_pl.reconstruction.settings import KEY, ReconstructionConfig
from reconx_pl.reconstruction.stages import Step
from reconx_pl.reconstruction.tensors import save_tensors, to_bytes
from reconx_pl.splatting.fit import fit
from reconx_pl.splatting.ply import load_ply, save_ply
from reconx_pl.splatting.renderer import default_renderer
from reconx_pl.types import PointCloud

SCENE, VIDEO, DEPTH_VIDEO = "scene.ply", "flythrough.mp4", "flythrough_depth.mp4"
RENDERED, NUMBERS = "rendered.safetensors", "fit.json"
WITHOUT_LPIPS = "--fit.loss.lpips 0"


def fit_scene(
    given: FitInput, config: ReconstructionConfig, device: torch.device, folder: Path, step: Step
) -> list[str]:
    """Fit, and write the scene, what it shows from the photographs' cameras, and the loss. Returns notes.

    Raises:
        MissingWeightsError: the loss uses LPIPS and its weights are not there.
        BadSceneError, ConfigurationError: see ``splatting.fit.fit``.
    """
    renderer = default_renderer(device)
    start = PointCloud(*(part.to(device) for part in (given.start.points, given.start.colors, given.start.confidence)))
    result = fit(
        given.frames.to(device),
        given.cameras,
        None if given.confidence is None else given.confidence.to(device),
        start,
        config.fit,
        renderer=renderer,
        perceptual=loss_network(config.fit, device, WITHOUT_LPIPS),
        progress=lambda done, steps, _: step(done, steps),
        generator=scene_generator(config.seed, KEY, "fit"),
        known_views=given.known,
    )
    with torch.no_grad():
        seen = [renderer.render(result.gaussians, given.cameras[at].to(device)).color.cpu() for at in given.known]
    rendered = torch.cat(seen).clamp(0, 1)
    scores = psnr(rendered, given.frames[given.known])
    save_tensors(
        {"rendered": to_bytes(rendered), "photographs": to_bytes(given.frames[given.known])}, folder / RENDERED
    )
    write_json(
        folder / NUMBERS,
        {
            "gaussians": len(result.gaussians),
            "frames": len(given.frames),
            "psnr_of_photographs": [round(float(value), 3) for value in scores],
            "loss": [round(value, 6) for value in result.history],
        },
    )
    save_ply(result.gaussians, folder / SCENE)
    return [
        f"{len(result.gaussians)} Gaussians fitted to {len(given.frames)} frames",
        f"PSNR at the photographs themselves {float(scores.mean()):.2f} dB (they were fitted: no measure of quality)",
    ]


def fly_through(
    scene: Path,
    given: FitInput,
    config: ReconstructionConfig,
    closed: bool,
    device: torch.device,
    folder: Path,
    step: Step,
) -> list[str]:
    """Write the video of a flight through the scene, and one of its depth. Returns notes.

    Raises:
        ConfigurationError: the path cannot be made of these cameras.
    """
    gaussians = load_ply(scene)
    order = [*given.known, given.known[0]] if closed and config.flight == "interpolated" else given.known
    path = PATHS[config.flight](given.cameras[order], config.flight_frames, gaussians.means)
    placed = replace(
        gaussians,
        **{part: value.to(device) for part, value in vars(gaussians).items()},
    )
    flown = fly(placed, path, default_renderer(device), step)
    write_mp4(flown.frames, folder / VIDEO, config.flight_fps)
    write_mp4(depth_colors(flown.depth), folder / DEPTH_VIDEO, config.flight_fps)
    return [f"{len(path)} frames of {path.width} x {path.height}, path {config.flight}"]
