"""The commands for a finished scene: other formats, videos, the browser (docs/export.md, docs/viewer.md)."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from reconx_pl.cli.arguments import ArgumentParser
from reconx_pl.cli.command import add_arguments, command_of, summary
from reconx_pl.cli.console import console, progress_bar
from reconx_pl.errors import ConfigurationError
from reconx_pl.files.atomic import refuse_existing
from reconx_pl.splatting.io.scene_files import load_scene, save_scene
from reconx_pl.types import Cameras, Gaussians, PointCloud


def export(scene: Path, out: Path, cameras: Path | None = None, overwrite: bool = False) -> None:
    """Write a scene of Gaussians in another format; the ending decides.

    Args:
        scene: .ply or .splat.
        out: .ply (everything, for most viewers), .splat (an eighth of the size, lossy: base colours, 8 bits), or .html
            (a page that any browser opens, without a server; at most 200,000 Gaussians).
        cameras: for .html, a posed scene in any format that pack reads; the page starts at its first camera.
        overwrite: replace a file that is there.
    """
    if out.suffix.lower() == ".html":
        from reconx_pl.data.formats.readers import only_scene
        from reconx_pl.visualization.viewer import write_scene_page

        refuse_existing(out, overwrite)
        views = None if cameras is None else only_scene(cameras).cameras
        write_scene_page(out, load_scene(scene), views, title=scene.stem)
    else:
        if cameras is not None:
            raise ConfigurationError(f"{out.name} keeps no cameras; leave --cameras out, or write .html")
        save_scene(load_scene(scene), out, overwrite)
    console.print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


def export_cameras(
    cameras: Path,
    out: Path,
    format: Literal["transforms", "colmap", "posed"] = "transforms",
    points: Path | None = None,
) -> None:
    """Write a posed scene for other programs: images, cameras and points in a new folder.

    Args:
        cameras: a posed scene in any format that pack reads.
        out: a new folder.
        format: transforms (nerfstudio, instant-ngp), colmap (text model), or posed (data/posed.md).
        points: scene of Gaussians whose means and base colours become the points; None keeps the posed scene's.
    """
    from reconx_pl.data.formats.exporting import export_posed
    from reconx_pl.data.formats.readers import only_scene

    posed = only_scene(cameras)
    if points is not None:
        posed = replace(posed, cloud=_cloud(load_scene(points)))
    with progress_bar() as progress:
        export_posed(posed, out, format, progress)
    counted = 0 if posed.cloud is None else len(posed.cloud)
    console.print(f"{out}: {len(posed)} cameras, {counted} points")


def render(
    scene: Path,
    cameras: Path,
    out: Path,
    path: Literal["interpolated", "orbit", "spiral", "views"] = "interpolated",
    frames: int = 120,
    fps: float = 24.0,
    width: int | None = None,
    background: tuple[float, float, float] = (0.0, 0.0, 0.0),
    device: Literal["auto", "cpu", "cuda"] = "auto",
    depth: bool = False,
    overwrite: bool = False,
) -> None:
    """Render a scene of Gaussians along a camera path into a video.

    Args:
        scene: .ply or .splat.
        cameras: a posed scene in any format that pack reads; the path is made from its cameras.
        out: the video, .mp4.
        path: interpolated (smooth, through all cameras), orbit (a circle around what they look at), spiral (as in
            LLFF), or views (the cameras themselves, one frame each).
        frames: of the video, except for views.
        fps: frames a second.
        width: of the video, pixels; None is that of the cameras. The aspect is the cameras'.
        background: colour behind the scene, in [0, 1]; scene files do not keep it.
        device: auto takes CUDA (gsplat) where there is such a device, else the CPU.
        depth: write OUT.depth.mp4 too: turbo over inverse depth, red is near, black has no depth.
        overwrite: replace videos that are there.
    """
    from reconx_pl.data.formats.readers import only_scene
    from reconx_pl.devices import chosen_device
    from reconx_pl.splatting.renderers.choose import default_renderer
    from reconx_pl.visualization.color_maps import depth_colors
    from reconx_pl.visualization.flythrough import render_flythrough
    from reconx_pl.visualization.video import write_mp4

    if out.suffix != ".mp4":
        raise ConfigurationError(f"{out}: a video is a file that ends in .mp4")
    if not fps > 0:
        raise ConfigurationError(f"a video needs a positive frame rate, got {fps}")
    depth_out = out.with_suffix(".depth.mp4")
    for file in (out, depth_out) if depth else (out,):
        refuse_existing(file, overwrite)
    chosen = torch.device(chosen_device(device))
    gaussians = load_scene(scene)
    flown_cameras = _flown(only_scene(cameras).cameras, gaussians, path, frames, width)
    renderer = default_renderer(chosen)
    with progress_bar() as progress:
        flythrough = render_flythrough(_on(gaussians, chosen, background), flown_cameras, renderer, progress)
    write_mp4(flythrough.frames, out, fps)
    if depth:
        write_mp4(depth_colors(flythrough.depth), depth_out, fps)
    console.print(f"{out}: {len(flown_cameras)} frames of {flown_cameras.width} x {flown_cameras.height}")


def view(
    scene: Path,
    cameras: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    max_gaussians: int | None = None,
) -> None:
    """Show a scene of Gaussians in the browser, until Ctrl-C.

    Args:
        scene: .ply or .splat.
        cameras: a posed scene in any format that pack reads; its cameras are drawn, and can be jumped to.
        host: address to serve on; 127.0.0.1 is reached from this machine alone, 0.0.0.0 from others too.
        port: 0 takes any that is free.
        max_gaussians: show only so many, those of most opacity times volume.
    """
    from reconx_pl.data.formats.readers import only_scene
    from reconx_pl.visualization.viewer import Viewer

    posed = None if cameras is None else only_scene(cameras).cameras
    with Viewer(load_scene(scene), posed, host, port, max_gaussians) as viewer:
        console.print(f"{viewer.url} shows {scene}; Ctrl-C ends it")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            console.print("stopped")


def _render_parser() -> ArgumentParser:
    parser = ArgumentParser(description=summary(render))
    add_arguments(parser, render, only_first_by_place=True)
    return parser


def _cloud(gaussians: Gaussians) -> PointCloud:
    from reconx_pl.splatting.io.splat import base_colors

    return PointCloud(gaussians.means, base_colors(gaussians), torch.ones(len(gaussians)))


def _on(gaussians: Gaussians, device: torch.device, background: tuple[float, float, float]) -> Gaussians:
    return Gaussians(
        gaussians.means.to(device),
        gaussians.quaternions.to(device),
        gaussians.log_scales.to(device),
        gaussians.opacity_logits.to(device),
        gaussians.sh.to(device),
        torch.tensor(background, device=device),
    )


def _flown(cameras: Cameras, gaussians: Gaussians, path: str, frames: int, width: int | None) -> Cameras:
    """The cameras of the video."""
    from reconx_pl.geometry.camera_paths import PATHS
    from reconx_pl.geometry.cameras import resize_cameras

    if path != "views":
        cameras = PATHS[path](cameras, frames, gaussians.means)
    if width is not None:
        cameras = resize_cameras(cameras, round(cameras.height * width / cameras.width), width)
    return cameras


COMMANDS = {
    "export": command_of(export),
    "export-cameras": command_of(export_cameras),
    "render": command_of(render, _render_parser),
    "view": command_of(view),
}
