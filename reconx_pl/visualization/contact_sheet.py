"""A picture of one evaluated scene: input, generated, ground truth, splat render, error; time to the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps, get_data_path
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from reconx_pl.errors import ConfigurationError
from reconx_pl.visualization.video import to_uint8

INK, QUIET, PAPER, EMPTY = (26, 28, 33), (104, 109, 120), (255, 255, 255), (240, 241, 243)
COLORMAP = "magma"
GAP, LABEL_WIDTH, HEADER, BAR_WIDTH = 6, 176, 40, 104


@dataclass(frozen=True)
class SheetRow:
    """One row of a sheet.

    Args:
        label: a word or two; a second line after a newline is set smaller.
        images: one image [3, H, W] in [0, 1] or None (nothing there) a column.
    """

    label: str
    images: Sequence[Tensor | None]


def error_image(prediction: Tensor, target: Tensor, gain: float) -> Tensor:
    """Colours of the mean absolute error over channels times ``gain``: [3, H, W] from two images [3, H, W]."""
    error = (prediction.clamp(0, 1) - target).abs().mean(dim=0) * gain  # [H, W]
    colors = colormaps[COLORMAP](error.clamp(0, 1).cpu().numpy())[..., :3]  # [H, W, 3]
    return target.new_tensor(colors).permute(2, 0, 1)


def sheet_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib brings it along: PIL's own font has neither × nor ≥."""
    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` indices, evenly spaced, ends included."""
    if count <= most:
        return list(range(count))
    return sorted({round(position) for position in np.linspace(0, count - 1, most)})


def contact_sheet(
    rows: Sequence[SheetRow], columns: Sequence[str], gain: float | None = None, cell: int = 192
) -> Image.Image:
    """Lay out labelled rows of images, with a colour bar for the error row at the right.

    Args:
        rows: all with one image (or None) a column, all images of one size.
        columns: header of each column.
        gain: of the error row, for the scale of the colour bar (which stands beside the last row); None draws no bar.
        cell: the longer side of an image on the sheet, pixels.

    Raises:
        ConfigurationError: rows of different lengths, or no image at all.
    """
    if any(len(row.images) != len(columns) for row in rows):
        raise ConfigurationError(f"every row of a contact sheet needs {len(columns)} images")
    sizes = {tuple(image.shape[-2:]) for row in rows for image in row.images if image is not None}
    if len(sizes) != 1:
        raise ConfigurationError(f"a contact sheet needs images of one size, got {sorted(sizes)}")
    height, width = sizes.pop()
    scale = cell / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))  # PIL: columns, rows
    # Enlarged pixels stay square blocks: a smoothed enlargement would hide what was generated.
    resample = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    total_width = LABEL_WIDTH + len(columns) * (size[0] + GAP) + (BAR_WIDTH if gain else 0) + GAP
    sheet = Image.new("RGB", (total_width, HEADER + len(rows) * (size[1] + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    large, small = sheet_font(20), sheet_font(16)
    for column, header in enumerate(columns):
        x = LABEL_WIDTH + column * (size[0] + GAP) + size[0] / 2
        draw.text((x, HEADER / 2 + 2), header, fill=QUIET, font=small, anchor="mm")
    for index, row in enumerate(rows):
        top = HEADER + index * (size[1] + GAP)
        title, _, subtitle = row.label.partition("\n")
        middle = top + size[1] / 2 - (12 if subtitle else 0)
        draw.text((LABEL_WIDTH - 14, middle), title, fill=INK, font=large, anchor="rm")
        if subtitle:
            draw.text((LABEL_WIDTH - 14, middle + 27), subtitle, fill=QUIET, font=small, anchor="rm")
        for column, image in enumerate(row.images):
            corner = (LABEL_WIDTH + column * (size[0] + GAP), top)
            if image is None:
                draw.rectangle((*corner, corner[0] + size[0] - 1, corner[1] + size[1] - 1), fill=EMPTY)
            else:
                sheet.paste(Image.fromarray(to_uint8(image[None])[0]).resize(size, resample), corner)
    if gain:
        left = LABEL_WIDTH + len(columns) * (size[0] + GAP) + 4
        _colour_bar(sheet, left, HEADER + (len(rows) - 1) * (size[1] + GAP), size[1], gain, small)
    return sheet


def stacked(sheets: Sequence[Image.Image]) -> Image.Image:
    """Sheets below each other, as wide as the widest."""
    whole = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)), PAPER)
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    return whole


def _colour_bar(
    sheet: Image.Image,
    left: int,
    top: int,
    height: int,
    gain: float,
    font: ImageFont.FreeTypeFont,
) -> None:
    """Draw the scale of the error row: 0 at the bottom, the error that saturates the colours at the top."""
    inset, width = 10, 16
    length = height - 2 * inset
    ramp = colormaps[COLORMAP](np.linspace(1, 0, max(length, 2)))[:, None, :3].repeat(width, axis=1)
    sheet.paste(Image.fromarray((ramp * 255).round().astype(np.uint8)), (left, top + inset))
    draw = ImageDraw.Draw(sheet)
    for share in (0.0, 0.5, 1.0):
        y = top + inset + (1 - share) * (length - 1)
        text = f"{share / gain:.3g}" if share < 1 else f"≥ {1 / gain:.3g}"
        draw.line((left + width, y, left + width + 3, y), fill=QUIET)
        draw.text((left + width + 6, y), text, fill=QUIET, font=font, anchor="lm")
