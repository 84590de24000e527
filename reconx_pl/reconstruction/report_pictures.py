"""What there is to see of a reconstruction: fly-through, photographs beside the scene, generated frames, plan, loss."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image
from torch import Tensor

from reconx_pl.files.tensors import load_tensors, to_bytes
from reconx_pl.reconstruction import fitting, generation
from reconx_pl.reconstruction.report_content import STAGE_FOLDER, Content
from reconx_pl.reconstruction.settings import FIT, FLYTHROUGH, GENERATION
from reconx_pl.visualization.camera_map import plan
from reconx_pl.visualization.contact_sheet import COLORMAP, error_image, spread
from reconx_pl.visualization.curves import RunCurves, fall, plot_run
from reconx_pl.visualization.html import data_uri, jpeg_uri, plural, video_figure
from reconx_pl.visualization.video import to_uint8

VIDEO_LIMIT = 4 * 1024 * 1024  # bytes; a larger one is linked
PICTURED, STRIPS, STRIP_FRAMES = 12, 12, 8  # photographs, generated clips, and frames of each that are shown
GAIN = 4.0  # of the error's colours: they end at a quarter of the range
_SIDE, _STRIP_HEIGHT, _QUALITY = 560, 160, 85  # pixels of embedded pictures, and of JPEG


def flythrough(content: Content) -> str:
    """The fly-through of the scene, and its depth."""
    captions = {
        fitting.VIDEO: "Fly-through of the scene",
        fitting.DEPTH_VIDEO: "Depth along the fly-through: red is near, blue is far",
    }
    videos = [
        video_figure(path, file, caption, content.summary["name"], VIDEO_LIMIT)
        for file, caption in captions.items()
        if (path := content.result(FLYTHROUGH, file))
    ]
    return f'<h2>Fly-through</h2><div class="clips wide">{"".join(videos)}</div>' if videos else ""


def views(content: Content) -> str:
    """Photographs beside what the scene shows from their cameras; without a scene the photographs alone."""
    found, fit = content.kept(FIT, fitting.RENDERED), content.fit
    if not found or fit is None:
        return _photographs(content)
    tensors = load_tensors(found[0])
    rendered, photographs, psnr = tensors["rendered"], tensors["photographs"], fit["psnr_of_photographs"]
    shown = spread(len(photographs), PICTURED)
    names = _names(content)
    rows = [_trio(names[at], photographs[at].float() / 255, rendered[at].float() / 255, psnr[at]) for at in shown]
    stops = ", ".join(to_hex(colormaps[COLORMAP](share)) for share in np.linspace(0, 1, 9))
    some = "" if len(shown) == len(photographs) else f" {len(shown)} of {len(photographs)} are shown."
    height, width = photographs.shape[-2:]
    said = (
        f"<b>The scene was fitted to this very photograph.</b> How well it repeats it (PSNR {psnr[0]:.2f} dB) is no "
        "measure of its quality: that shows beside it, where no photograph was."
        if len(psnr) == 1
        else "<b>The scene was fitted to these very photographs.</b> How well it repeats them "
        f"(PSNR {np.mean(psnr):.2f} dB on average, {min(psnr):.2f} to {max(psnr):.2f}) is no measure of its quality: "
        "that shows between them, where no photograph was."
    )
    return (
        f"<h2>{'Photograph' if len(psnr) == 1 else 'Photographs'} and scene</h2>"
        f'<div class="box warn"><p>{said} See the fly-through.</p></div>'
        f'<p class="note">Each photograph as the fit had it ({width} × {height} pixels), the scene from its camera, '
        f"and the mean absolute error over the colours.{some}</p>"
        f'<div class="scale"><span>0</span><i style="background:linear-gradient(90deg, {stops})"></i>'
        f"<span>≥ {1 / GAIN:g} of the range</span></div>"
        '<div class="heads" aria-hidden="true"><span>Photograph</span><span>Scene</span><span>Error</span></div>'
        + "".join(rows)
    )


def generated(content: Content) -> str:
    """Generated frames in strips, and the video; or that nothing was generated."""
    names = _names(content)
    if content.summary["view_generator"] is None:
        said = (
            "Nothing was generated: what the photograph does not show is missing in the scene."
            if len(names) == 1
            else "Nothing was generated between the photographs: what none of them shows is missing in the scene."
        )
        return f"<h2>Generated frames</h2><p>{said}</p>"
    if GENERATION not in content.stages:
        return ""
    asked = content.summary["settings"]["generation"]
    between = asked["path"] in generation.BETWEEN and not asked["orbit_frames"]
    strips = _between(content, names) if between else _along(content, asked)
    video = content.result(GENERATION, generation.VIDEO)
    figure = (
        ""
        if video is None
        else video_figure(video, generation.VIDEO, "All frames in their order", content.summary["name"], VIDEO_LIMIT)
    )
    return f'<h2>Generated frames</h2>{strips}<div class="clips wide">{figure}</div>'


def _between(content: Content, names: list[str]) -> str:
    """A strip for each clip from a photograph to the next."""
    clips, strips = content.kept(GENERATION, "clip-*.safetensors"), []
    ends = [*range(len(names)), 0]
    for number in spread(len(clips), STRIPS):
        frames = load_tensors(clips[number])["frames"]
        between = f"{escape(names[ends[number]])} to {escape(names[ends[number + 1]])}"
        strips.append(_figure(frames, f"{between}, {len(frames) - 2} generated"))
    some = "" if len(clips) <= STRIPS else f" {STRIPS} of {plural(len(clips), 'clip')} are shown."
    return (
        "<p>A video diffusion model generated the frames between neighbouring photographs; what no photograph shows is "
        "its invention. The first and the last frame of each strip belong to the "
        f"photographs.{some}</p>{''.join(strips)}"
    )


def _along(content: Content, asked: Mapping[str, Any]) -> str:
    """One strip of a whole path."""
    path = f"{asked['orbit_frames']} frames around" if asked["orbit_frames"] else str(asked["path"])
    strip = ""
    if content.kept(GENERATION, generation.SEQUENCE):
        made = generation.read_sequence(content.kept(GENERATION, generation.SEQUENCE)[0].parent)
        strip = _figure(to_bytes(made.images[: made.way]), f"{escape(path)}, {plural(made.way, 'frame')}")
    return (
        f"<p>A video diffusion model generated the frames along a path of the camera ({escape(path)}); what no "
        f"photograph shows is its invention.</p>{strip}"
    )


def _figure(frames: Tensor, caption: str) -> str:
    """A strip of some frames of [T, 3, H, W] uint8; the caption is HTML."""
    source = jpeg_uri(_strip(frames[spread(len(frames), STRIP_FRAMES)]), _QUALITY)
    return (
        f'<figure><div class="sheet scroll"><img src="{source}" alt="Frames: {caption}"></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def seen_from_above(content: Content) -> str:
    """The plan of the cameras."""
    scene = content.scene
    if scene is None:
        return ""
    closed = bool(content.summary["closed"])
    drawing, dots = plan(scene.cameras, scene.cloud, closed)
    points = 0 if scene.cloud is None else len(scene.cloud)
    names = _names(content)
    listed = "".join(f"<li>{escape(name)}</li>" for name in names)
    way = "closed: from the last it goes back to the first" if closed else "open"
    drawn = (
        "The triangle is the camera and opens to what it sees."
        if len(names) == 1
        else "Triangles are cameras and open to what they see; the first is filled. The line is the order of visiting, "
        f"{way}."
    )
    return (
        f'<h2>{"Camera" if len(names) == 1 else "Cameras"} from above</h2><div class="above">'
        f"<figure>{drawing}</figure><div><p>{drawn} Dots are {dots:,} of {points:,} points. There is no scale: "
        "photographs alone do not tell how large a scene is.</p>"
        f"<details{' open' if len(names) <= PICTURED else ''}><summary>{plural(len(names), 'photograph')}"
        f'{" in their order" if len(names) > 1 else ""}</summary><ol class="names">{listed}</ol></details></div></div>'
    )


def loss(content: Content) -> str:
    """The loss of the fit over its steps."""
    values = np.array(content.fit["loss"] if content.fit else [], dtype=np.float64)
    if len(values) < 2:
        return ""
    svg = plot_run(RunCurves("Loss of the fit", {"train/loss": (np.arange(1, len(values) + 1), values)}))
    assert svg is not None
    first, last = fall(values)
    caption = f"{plural(len(values), 'step')}; mean of the first tenth {first:.4g}, of the last {last:.4g}"
    image = f'<img src="{data_uri(svg, "image/svg+xml")}" alt="Loss over steps. {caption}">'
    return f'<h2>Fit</h2><div class="curves"><figure>{image}<figcaption>{caption}</figcaption></figure></div>'


def _names(content: Content) -> list[str]:
    return [str(name) for name in content.summary["views"]]


def _photographs(content: Content) -> str:
    scene = content.scene
    if scene is None:
        return ""
    names, shown = _names(content), spread(len(scene), PICTURED)
    cells = "".join(
        f"<figure>{_picture(Image.fromarray(scene.load_image(at)), names[at])}"
        f"<figcaption>{at + 1} · {escape(names[at])}</figcaption></figure>"
        for at in shown
    )
    some = "" if len(shown) == len(scene) else f'<p class="note">{len(shown)} of {len(scene)} are shown.</p>'
    lost = (
        f"<p>What the scene shows from their cameras is no longer here: {STAGE_FOLDER}/ was deleted.</p>"
        if FIT in content.stages
        else ""
    )
    return f'<h2>Photographs</h2>{lost}{some}<div class="gallery">{cells}</div>'


def _trio(name: str, photograph: Tensor, rendered: Tensor, psnr: float) -> str:
    error = error_image(rendered, photograph, GAIN)
    pictures = {"Photograph": photograph, "Scene from the camera of": rendered, "Error at": error}
    shown = "".join(_picture(_image(picture), f"{what} {name}") for what, picture in pictures.items())
    return f'<figure class="trio">{shown}<figcaption><b>{escape(name)}</b> {psnr:.2f} dB</figcaption></figure>'


def _picture(image: Image.Image, what: str) -> str:
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return f'<img src="{jpeg_uri(image, _QUALITY)}" alt="{escape(what)}">'


def _image(picture: Tensor) -> Image.Image:
    return Image.fromarray(to_uint8(picture[None])[0])


def _strip(frames: Tensor) -> Image.Image:
    """Frames [T, 3, H, W] uint8 beside each other."""
    height, width = frames.shape[-2:]
    size = (max(1, round(width * _STRIP_HEIGHT / height)), _STRIP_HEIGHT)
    strip = Image.new("RGB", (len(frames) * (size[0] + 4) - 4, size[1]), "white")
    for place, frame in enumerate(frames):
        picture = Image.fromarray(frame.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.LANCZOS)
        strip.paste(picture, (place * (size[0] + 4), 0))
    return strip
