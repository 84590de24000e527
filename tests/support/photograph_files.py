"""Files of photographs, and what is said about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.ExifTags import IFD, Base
from raw_scenes import picture

from reconx_pl.data.photos.photographs import Photographs, load_photographs
from reconx_pl.errors import BadDataError, ReconXError


def exif_of(orientation: int = 1, **tags: Any) -> Image.Exif:
    exif = Image.Exif()
    exif[Base.Orientation] = orientation
    for name, value in tags.items():
        target = exif if name in ("Make", "Model") else exif.get_ifd(IFD.Exif)
        target[Base[name]] = value
    return exif


def write(folder: Path, name: str, size: tuple[int, int] = (96, 64), seed: int = 0, **save: Any) -> Path:
    """A photograph of (width, height), another one for every name."""
    folder.mkdir(parents=True, exist_ok=True)
    number = seed + sum(name.encode())
    picture(number, size[1], size[0]).save(folder / name, **save)
    return folder / name


def note(photographs: Photographs, part: str) -> str:
    found = [text for text in photographs.notes if part in text]
    assert len(found) == 1, photographs.notes
    return found[0]


def refused(sources: list[Path], kind: type[ReconXError] = BadDataError, **options: Any) -> str:
    with pytest.raises(kind) as raised:
        load_photographs(sources, **options)
    message = str(raised.value)
    assert "\n" not in message
    return message
