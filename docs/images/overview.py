"""The picture at the top of the README, made of the outputs of ``make demo``.

``python docs/images/overview.py report/scenes/procedural-02000000`` writes ``docs/images/overview.jpg``: the input
views, their point cloud, the frames that the demo's model generated between them, and the fitted scene, rendered at
cameras between the inputs. The number in the folder's name is the seed of the procedural scene.
"""

from __future__ import annotations

import sys
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageDraw

from reconx_pl.data.procedural import procedural_clip
from reconx_pl.geometry.cameras import resize_cameras
from reconx_pl.splatting.io.scene_files import load_scene
from reconx_pl.splatting.renderers.cpu import CpuRenderer
from reconx_pl.types import Cameras, PointCloud
from reconx_pl.visualization.color_maps import depth_colors
from reconx_pl.visualization.contact_sheet import INK, QUIET, sheet_font
from reconx_pl.visualization.video import to_uint8

CELL, CLOUD_WIDTH, GAP, MARGIN, ARROW, TOP, BOTTOM = 192, 270, 6, 22, 52, 64, 50
NOTE = (
    "Outputs of `make demo`: a procedural scene, and a small model that is trained for minutes on a processor. It is "
    "guided by the depth of the two views, rendered into the camera of every frame."
)


def point_picture(cloud: PointCloud, camera: Cameras, height: int, width: int) -> np.ndarray:
    """The cloud from above and behind ``camera``, nearest points last: uint8 [height, width, 3] on white."""
    inside = cloud.points @ camera.world_to_camera[0, :3, :3].T + camera.world_to_camera[0, :3, 3]
    middle = inside.median(0).values
    tilt = np.deg2rad(24.0)
    turn = torch.tensor(
        [[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]], dtype=inside.dtype
    )
    seen = (inside - middle) @ turn.T + torch.tensor([0, 0, 1.5 * middle[2]], dtype=inside.dtype)
    x, y = (0.85 * width * seen[:, :2] / seen[:, 2:]).T
    order = seen[:, 2].argsort(descending=True)
    picture = np.full((height, width, 3), 255, dtype=np.uint8)
    colors = (cloud.colors.clamp(0, 1) * 255).to(torch.uint8).numpy()
    for i in order.tolist():
        row, column = int(y[i] + height / 2), int(x[i] + width / 2)
        if 1 <= row < height - 1 and 1 <= column < width - 1:
            picture[row - 1 : row + 1, column - 1 : column + 1] = colors[i]
    return picture


def main(scene: Path, out: Path) -> None:
    """Read the scene's folder of a report, write the picture."""
    clip = procedural_clip(int(scene.name.split("-")[-1]), points=16384)
    with av.open(str(scene / "generated.mp4")) as video:
        generated = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    cameras = resize_cameras(clip.cameras, CELL, CELL)
    shown = CpuRenderer().render(load_scene(scene / "scene.ply"), cameras)
    colors, depth = to_uint8(shown.color), depth_colors(shown.depth * (shown.alpha > 0.5))
    inputs = to_uint8(clip.frames[[0, -1]].float() / 255)
    block = 2 * CELL + GAP
    assert clip.cloud is not None  # procedural clips have one
    cloud = point_picture(clip.cloud, clip.cameras[[0]], block, CLOUD_WIDTH)
    panels: list[tuple[str, str, list[list[np.ndarray]]]] = [
        ("Input views", "sparse-view: two of them", [[inputs[0]], [inputs[1]]]),
        ("Point cloud", "guides the video diffusion model", [[cloud]]),
        ("Generated frames", "by the demo's small model", [[generated[1], generated[3]], [generated[4], generated[6]]]),
        (
            "3D Gaussians",
            "novel views: colour and depth",
            [list(colors[[2, 4, 5]]), list(depth[[2, 4, 5]])],
        ),
    ]
    widths = [CLOUD_WIDTH if len(rows) == 1 else len(rows[0]) * (CELL + GAP) - GAP for _, _, rows in panels]
    width = 2 * MARGIN + sum(widths) + ARROW * (len(panels) - 1)
    sheet = Image.new("RGB", (width, TOP + block + BOTTOM), "white")
    draw = ImageDraw.Draw(sheet)
    left = MARGIN
    for (title, line, rows), wide in zip(panels, widths, strict=True):
        if left > MARGIN:
            middle = TOP + block // 2
            draw.line((left - ARROW + 12, middle, left - 18, middle), fill=QUIET, width=3)
            draw.polygon([(left - 12, middle), (left - 24, middle - 8), (left - 24, middle + 8)], fill=QUIET)
        draw.text((left, 8), title, fill=INK, font=sheet_font(21))
        draw.text((left, 38), line, fill=QUIET, font=sheet_font(13))
        for number, row in enumerate(rows):
            for place, image in enumerate(row):
                size = (CLOUD_WIDTH, block) if len(rows) == 1 else (CELL, CELL)
                tile = Image.fromarray(np.asarray(image)).resize(size, Image.Resampling.LANCZOS)
                sheet.paste(tile, (left + place * (CELL + GAP), TOP + number * (CELL + GAP)))
        left += wide + ARROW
    draw.text((MARGIN, TOP + block + 18), NOTE, fill=QUIET, font=sheet_font(14))
    sheet.save(out, quality=90, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).with_suffix(".jpg"))
