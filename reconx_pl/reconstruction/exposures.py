"""Photographs of different exposures brought to one, before anything is made of them but geometry."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from reconx_pl.data.formats.scene import RawFrame
from reconx_pl.geometry.exposure_gains import EvenExposures, ExposureGains, evened_images, recoloured, wanted_gains
from reconx_pl.reconstruction.views import Views, fit_size, input_views

MEASURED_AT = 256  # short side, pixels


def even_exposures(views: Views, setting: EvenExposures) -> tuple[Views, ExposureGains | None]:
    """The photographs, and the colours of their points, as one exposure would have them; and the gains that did it.

    Photographs whose exposures do not differ are returned as they are, with None.
    """
    if setting == "never" or len(views.names) < 2:
        return views, None
    small = input_views(views, *fit_size(views, MEASURED_AT))
    found = wanted_gains(small.images, small.cameras, views.cloud.points, setting)
    if found is None:
        return views, None
    frames = tuple(
        replace(frame, load=partial(_evened, frame, gains.numpy()))
        for frame, gains in zip(views.scene.frames, found.gains, strict=True)
    )
    cloud = recoloured(views.cloud, evened_images(small.images, found.gains), small.cameras)
    return replace(views, scene=replace(views.scene, frames=frames, cloud=cloud)), found


def _evened(frame: RawFrame, gains: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]."""
    evened: np.ndarray = np.rint(frame.load() * gains).clip(0, 255).astype(np.uint8)
    return evened
