"""What EXIF says about the lens of a photograph: its focal length in pixels, and what tells it from other lenses."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from PIL import Image
from PIL.ExifTags import IFD, Base

FULL_FRAME_DIAGONAL = math.hypot(36.0, 24.0)  # mm; CIPA DCG-001 defines the 35 mm equivalent over the diagonal
NEAREST, FARTHEST = 0.3, 10.0  # of the longer side: (ours) no lens of a photograph is wider or narrower
_MILLIMETRES = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # EXIF 2.3: FocalPlaneResolutionUnit; 4 and 5 are common additions
_CONTRADICTION = 1.2  # (ours) between two focal lengths of one file
_CROPPED = 0.02  # (ours) relative difference of aspects that rounding does not explain


@dataclass(frozen=True)
class ExifLens:
    """Lens of one photograph.

    Args:
        focal: pixels of the stored image; None where EXIF does not say.
        identity: device, lens and zoom; photographs that agree in it, and in size, come from one camera.
        doubt: why a focal length that stands in the file is not believed; empty if there is none.
    """

    focal: float | None
    identity: tuple[str, ...]
    doubt: str = ""


def exif_lens(image: Image.Image) -> ExifLens:
    """Read the lens of an opened image; damaged EXIF counts as none, with a doubt that says so.

    The focal length is FocalLength times FocalPlaneXResolution, else FocalLengthIn35mmFilm over the diagonal of the
    full frame, 43.27 mm. Where both are there and contradict each other, the second is right: it does not change when a
    program reduces the picture.
    """
    try:
        exif = image.getexif()
        tags = {**exif, **exif.get_ifd(IFD.Exif)}
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error, EOFError) as error:
        return ExifLens(None, (), f"its EXIF is damaged ({error})")
    identity = tuple(
        str(tags.get(tag, "")).strip("\0 ")
        for tag in (Base.Make, Base.Model, Base.BodySerialNumber, Base.LensModel, Base.FocalLength,
                    Base.FocalLengthIn35mmFilm, Base.DigitalZoomRatio)
    )  # fmt: skip
    width, height = image.size
    recorded = _number(tags, Base.ExifImageWidth), _number(tags, Base.ExifImageHeight)
    whole = max(recorded) if all(recorded) else float(max(width, height))  # longer side that the camera wrote
    by_plane = _number(tags, Base.FocalLength) * _number(tags, Base.FocalPlaneXResolution)
    by_plane /= _MILLIMETRES.get(int(_number(tags, Base.FocalPlaneResolutionUnit) or 2), math.inf)
    by_plane *= max(width, height) / whole  # the resolution is that of the picture as the camera wrote it
    by_film = _number(tags, Base.FocalLengthIn35mmFilm) * math.hypot(width, height) / FULL_FRAME_DIAGONAL
    believed = [focal for focal in (by_plane, by_film) if _plausible(focal, width, height)]
    if not believed:
        given = max(by_plane, by_film)
        return ExifLens(None, identity, f"a focal length of {given:.0f} pixels is none of a camera" if given else "")
    if all(recorded) and abs(max(recorded) / min(recorded) * min(width, height) / max(width, height) - 1) > _CROPPED:
        shape = f"{recorded[0]:.0f} x {recorded[1]:.0f}"
        return ExifLens(None, identity, f"EXIF belongs to {shape} pixels, from which it was cropped")
    apart = max(believed) / min(believed)
    return ExifLens(believed[-1] if apart > _CONTRADICTION else believed[0], identity)


def _plausible(focal: float, width: int, height: int) -> bool:
    return NEAREST <= focal / max(width, height) <= FARTHEST


def _number(tags: dict[int, object], tag: int) -> float:
    """A positive finite number, or 0: cameras write 0, 0/0 and words where they do not know."""
    try:
        value = float(tags.get(tag, 0.0))  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return 0.0
    return value if math.isfinite(value) and value > 0 else 0.0
