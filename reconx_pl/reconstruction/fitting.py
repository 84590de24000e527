"""Stages "fit" and "flythrough": Gaussians, and a fly-through of them."""

from __future__ import annotations

from pathlib import Path

import torch

from reconx_pl.files.json_files import write_json
from reconx_pl.files.tensors import save_tensors, to_bytes
from reconx_pl.geometry.camera_paths import PATHS
from reconx_pl.metrics.image import psnr
from reconx_pl.metrics.lpips import LpipsDistance
from reconx_pl.reconstruction.scene_builder import FitInput
from reconx_pl.reconstruction.scene_builder import fit_scene as build_scene
from reconx_pl.reconstruction.settings import KEY, ReconstructionConfig
from reconx_pl.splatting.fit import loss_network
from reconx_pl.splatting.io.ply import load_ply, save_ply
from reconx_pl.splatting.renderers.base import Renderer
from reconx_pl.splatting.renderers.choose import default_renderer
from reconx_pl.types import Cameras, Progress
from reconx_pl.visualization.color_maps import depth_colors
from reconx_pl.visualization.flythrough import render_flythrough
from reconx_pl.visualization.html import plural
from reconx_pl.visualization.scene_page import write_fit_page
from reconx_pl.visualization.video import write_mp4

SCENE, PAGE, VIDEO, DEPTH_VIDEO = "scene.ply", "scene.html", "flythrough.mp4", "flythrough_depth.mp4"
RENDERED, NUMBERS = "rendered.safetensors", "fit.json"
WITHOUT_LPIPS = "--fit.loss.lpips 0"


def what_a_fit_needs(config: ReconstructionConfig, device: torch.device) -> tuple[Renderer, LpipsDistance | None]:
    """The renderer and the network of the loss: asked for before frames are generated too, which may take hours.

    Raises:
        MissingWeightsError: the loss uses LPIPS and its weights are not there.
        BackendUnavailableError: no renderer can run on the device.
    """
    return default_renderer(device), loss_network(config.fit, device, WITHOUT_LPIPS)


def fit_scene(
    given: FitInput, config: ReconstructionConfig, device: torch.device, title: str, folder: Path, progress: Progress
) -> list[str]:
    """Fit, and write the scene, the page ``title`` of it, what it shows from the photographs' cameras, and the loss.

    Returns:
        notes.

    Raises:
        MissingWeightsError, BackendUnavailableError: see ``what_a_fit_needs``.
        BadSceneError, ConfigurationError: see ``splatting.fit.fit``.
    """
    renderer, perceptual = what_a_fit_needs(config, device)
    result = build_scene(
        given.to(device),
        config.scene,
        KEY,
        renderer=renderer,
        perceptual=perceptual,
        progress=progress,
    )
    with torch.no_grad():
        seen = [
            renderer.render(result.gaussians, given.cameras[at].to(device)).color.cpu() for at in given.input_places
        ]
    rendered = torch.cat(seen).clamp(0, 1)
    scores = psnr(rendered, given.images[given.input_places])
    save_tensors(
        {"rendered": to_bytes(rendered), "photographs": to_bytes(given.images[given.input_places])}, folder / RENDERED
    )
    write_json(
        folder / NUMBERS,
        {
            "gaussians": len(result.gaussians),
            "frames": len(given.images),
            "psnr_of_photographs": [round(float(value), 3) for value in scores],
            "loss": [round(value, 6) for value in result.history],
        },
    )
    save_ply(result.gaussians, folder / SCENE)
    write_fit_page(folder / PAGE, result.gaussians, given.images, given.cameras, given.input_places, title)
    return [
        f"{len(result.gaussians)} Gaussians fitted to {plural(len(given.images), 'frame')}",
        f"PSNR at the photographs themselves {float(scores.mean()):.2f} dB (they were fitted: no measure of quality)",
    ]


def write_flythrough(
    scene: Path,
    cameras: Cameras,
    config: ReconstructionConfig,
    closed: bool,
    device: torch.device,
    folder: Path,
    progress: Progress,
) -> list[str]:
    """Write the video of a fly-through of the scene, and one of its depth. Returns notes.

    Args:
        scene: the Gaussians.
        cameras: of the photographs, in the order of visiting.
        config: the path and its frames.
        closed: an interpolated path goes back to the first camera.
        device: of the rendering.
        folder: of the stage.
        progress: counts what the stage counts.

    Raises:
        ConfigurationError: the path cannot be made of these cameras.
    """
    gaussians = load_ply(scene)
    chosen = config.flythrough or ("interpolated" if len(cameras) > 1 else "orbit")
    order = [*range(len(cameras)), *([0] if closed and chosen == "interpolated" else [])]
    path = PATHS[chosen](cameras[order], config.flythrough_frames, gaussians.means)
    flown = render_flythrough(gaussians.to(device), path, default_renderer(device), progress)
    write_mp4(flown.frames, folder / VIDEO, config.flythrough_fps)
    write_mp4(depth_colors(flown.depth), folder / DEPTH_VIDEO, config.flythrough_fps)
    return [f"{len(path)} frames of {path.width} x {path.height}, path {chosen}"]
