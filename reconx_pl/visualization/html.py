"""Pieces of HTML that all reports have: the page, pictures and videos inside of it, times, settings."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from reconx_pl.files.atomic import atomic_write
from reconx_pl.visualization.style import STYLE

STAGE_COLORS = ("#2b6cb0", "#6ba3d6", "#c05621", "#e0a458", "#5a8f69", "#8d6cab", "#a3a9b5", "#d98880", "#4a5568")


def write_page(path: Path, title: str, body: Sequence[str], style: str = "") -> Path:
    """Write a page that needs nothing else.

    Args:
        path: of the file, whole or not at all.
        title: plain text.
        body: its parts as HTML; empty ones are left out.
        style: CSS that follows the style sheet of all reports.
    """
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )
    with atomic_write(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    return path


def data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def jpeg_uri(image: Image.Image, quality: int = 90) -> str:
    """A picture made small enough to be embedded."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality, optimize=True)
    return data_uri(buffer.getvalue(), "image/jpeg")


def video_figure(path: Path, link: str, caption: str, of: str, limit: int, moving: bool = True) -> str:
    """A video inside of the page, or a link to it.

    Args:
        path: of the file.
        link: its path from the page.
        caption: plain text.
        of: what it shows, plain text.
        limit: bytes; a larger file is linked.
        moving: it plays without being asked.
    """
    caption, link = escape(caption), quote(link)
    if path.stat().st_size > limit:
        return f'<figure><figcaption><a href="{link}">{caption} (mp4)</a></figcaption></figure>'
    source, plays = data_uri(path.read_bytes(), "video/mp4"), "autoplay loop " if moving else ""
    label = f"{caption} of {escape(of)}"
    return (
        f'<figure><video src="{source}" {plays}muted playsinline controls aria-label="{label}">'
        f'<a href="{link}">{caption} (mp4)</a></video><figcaption>{caption}</figcaption></figure>'
    )


def duration(seconds: float) -> str:
    if seconds >= 120:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def time_bar(seconds: Mapping[str, float]) -> str:
    """A bar of the share of each stage, in the order given, with its legend; stages without time are left out."""
    spent = {stage: value for stage, value in seconds.items() if value > 0}
    total, bars, legend = sum(spent.values()), [], []
    for index, (stage, value) in enumerate(spent.items()):
        color = STAGE_COLORS[index % len(STAGE_COLORS)]
        bars.append(
            f'<span style="width:{100 * value / total:.2f}%;background:{color}" title="{escape(stage)}"></span>'
        )
        share = f"{duration(value)}, {f'{value / total:.0%}' if value >= 0.005 * total else '&lt;1%'}"
        legend.append(f'<li><i style="background:{color}"></i>{escape(stage)} <span>{share}</span></li>')
    return (
        f'<div class="time" role="img" aria-label="Share of each stage">{"".join(bars)}</div>'
        f'<ul class="legend">{"".join(legend)}</ul>'
    )


def settings_table(what: str, rows: Mapping[str, Any]) -> str:
    """A table that opens on a click; nested settings are joined by dots.

    Args:
        what: the line to click on, plain text.
        rows: name -> value, plain.
    """
    cells = "".join(
        f"<tr><td>{escape(name)}</td><td><code>{escape(str(value))}</code></td></tr>"
        for name, value in _flat(rows).items()
    )
    return (
        f"<h2>Settings</h2><details><summary>{escape(what)}</summary>"
        f'<div class="scroll"><table class="settings"><tbody>{cells}</tbody></table></div></details>'
    )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat
