"""How much of what one view sees another sees too, where the source brings depth or points."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from reconx_pl.data.formats.scene import RawScene
from reconx_pl.data.packing.clip_sampling import crop_depth
from reconx_pl.geometry.cameras import in_view, resize_and_crop, unproject


def view_overlap(raw: RawScene, first: int, last: int, height: int, width: int) -> float | None:
    """Share of the first view's field that lies in the field of the last: 0 to 1.

    The field is that of the frames as they are packed, ``height`` x ``width`` after the crop. It is counted in pixels
    with depth where the first view has some, else in the points that were found in it or, where the source does not
    say, fall into it. What hides a point from the last view is not looked for, so the share is an upper bound.

    Returns:
        None where the scene has neither depth nor points for the first view.

    Raises:
        BadSceneError: images of different sizes; names the file.
    """
    part = replace(raw, frames=(raw.frames[first], raw.frames[last]))
    cameras, resized, offset = resize_and_crop(part.cameras, height, width)
    depth = part.depth(0)
    if depth is not None:
        cropped = crop_depth(depth, cameras, resized, offset).double()  # [H, W]
        points = unproject(cropped[None], cameras[:1])[0][cropped > 0]
    elif raw.cloud is not None:
        points = raw.cloud.points.double()
        found = part.frames[0].observed
        if found is not None:
            points = points[torch.from_numpy(np.asarray(found))]
        points = points[in_view(points, cameras[:1])[0]]
    else:
        return None
    return float(in_view(points, cameras[1:])[0].double().mean()) if len(points) else None
