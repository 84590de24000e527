"""Photographs of different exposures brought to one, before anything is made of them but geometry."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from reconx_pl.data.formats.scene import RawFrame
from reconx_pl.files.tensors import to_bytes
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
        replace(frame, load=partial(_evened, frame, found.gains[view])) for view, frame in enumerate(views.scene.frames)
    )
    cloud = recoloured(views.cloud, evened_images(small.images, found.gains), small.cameras)
    return replace(views, scene=replace(views.scene, frames=frames, cloud=cloud)), found


def _evened(frame: RawFrame, gains: Tensor) -> np.ndarray:
    """uint8 [H, W, 3]."""
    image = torch.from_numpy(frame.load()).permute(2, 0, 1)[None].float() / 255
    return to_bytes(evened_images(image, gains[None]))[0].permute(1, 2, 0).contiguous().numpy()
