"""The picture at the top of the README, made of what ``make demo`` makes of its photographs.

``python docs/images/overview.py report-photographs`` writes ``docs/images/overview.jpg``: the photographs, the points
that were found from them, frames that reconx-mini generated between them, and the fly-through of the fitted scene.
"""

from __future__ import annotations

import sys
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageDraw

from reconx_pl.data.formats.readers import only_scene
from reconx_pl.types import Cameras, PointCloud
from reconx_pl.visualization.contact_sheet import INK, QUIET, sheet_font

CELL, CLOUD_WIDTH, GAP, MARGIN, ARROW, TOP, BOTTOM = (216, 144), 330, 6, 22, 52, 64, 50
ROWS = 3
NOTE = (
    "Outputs of `make demo`, on a processor: three photographs (P. Toffanin, MIT licence), cameras and points found "
    "from them, and a model of 8.7 million parameters that saw no photograph in its training."
)


def point_picture(cloud: PointCloud, camera: Cameras, height: int, width: int) -> np.ndarray:
    """The cloud from above and behind ``camera``, nearest points last: uint8 [height, width, 3] on white."""
    points = cloud.points.to(camera.world_to_camera)
    inside = points @ camera.world_to_camera[0, :3, :3].T + camera.world_to_camera[0, :3, 3]
    middle = inside.median(0).values
    tilt = np.deg2rad(24.0)
    turn = torch.tensor(
        [[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]], dtype=inside.dtype
    )
    seen = (inside - middle) @ turn.T + torch.tensor([0, 0, 1.5 * middle[2]], dtype=inside.dtype)
    x, y = (seen[:, :2] / seen[:, 2:]).T
    x, y = x - x.median(), y - y.median()
    zoom = min(width / 2 / x.abs().quantile(0.97), height / 2 / y.abs().quantile(0.97))
    x, y = zoom * x, zoom * y
    order = seen[:, 2].argsort(descending=True)
    picture = np.full((height, width, 3), 255, dtype=np.uint8)
    colors = (cloud.colors.clamp(0, 1) * 255).to(torch.uint8).numpy()
    for i in order.tolist():
        row, column = int(y[i] + height / 2), int(x[i] + width / 2)
        if 1 <= row < height - 1 and 1 <= column < width - 1:
            picture[row - 1 : row + 1, column - 1 : column + 1] = colors[i]
    return picture


def frames_of(video: Path, count: int) -> list[np.ndarray]:
    """So many frames of a video, evenly spread, its ends left out."""
    with av.open(str(video)) as content:
        frames = [frame.to_ndarray(format="rgb24") for frame in content.decode(video=0)]
    return [frames[round(place * (len(frames) - 1) / (count + 1))] for place in range(1, count + 1)]


def main(folder: Path, out: Path) -> None:
    """Read the folder of a reconstruction, write the picture."""
    scene = only_scene(folder)
    assert scene.cloud is not None
    block = ROWS * (CELL[1] + GAP) - GAP
    photographs = [scene.load_image(index) for index in range(ROWS)]
    generated = frames_of(folder / "generated.mp4", 2 * ROWS)
    colors, depth = (frames_of(folder / name, ROWS) for name in ("flythrough.mp4", "flythrough_depth.mp4"))
    cloud = point_picture(scene.cloud, scene.cameras[[0]], block, CLOUD_WIDTH)
    panels: list[tuple[str, str, list[list[np.ndarray]]]] = [
        ("Photographs", "three, without poses", [[image] for image in photographs]),
        ("Point cloud", "guides the video diffusion model", [[cloud]]),
        ("Generated frames", "by reconx-mini", [generated[2 * row : 2 * row + 2] for row in range(ROWS)]),
        ("3D Gaussians", "new views: colour and depth", [list(pair) for pair in zip(colors, depth, strict=True)]),
    ]
    widths = [CLOUD_WIDTH if len(rows) == 1 else len(rows[0]) * (CELL[0] + GAP) - GAP for _, _, rows in panels]
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
                size = (CLOUD_WIDTH, block) if len(rows) == 1 else CELL
                tile = Image.fromarray(np.asarray(image)).resize(size, Image.Resampling.LANCZOS)
                sheet.paste(tile, (left + place * (CELL[0] + GAP), TOP + number * (CELL[1] + GAP)))
        left += wide + ARROW
    draw.text((MARGIN, TOP + block + 18), NOTE, fill=QUIET, font=sheet_font(14))
    sheet.save(out, quality=88, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).with_suffix(".jpg"))
