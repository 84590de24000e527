"""Stage "geometry": cameras and points of the photographs, and the order in which to visit them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from reconx_pl.data.photos.photographs import Photographs
from reconx_pl.errors import BadSceneError, UnplacedViewsError
from reconx_pl.files.json_files import write_json
from reconx_pl.files.tensors import camera_tensors, cloud_tensors, save_tensors
from reconx_pl.geometry.cameras import resize_cameras
from reconx_pl.geometry.estimators.base import PointMapEstimator, Reconstruction, arguments_of, has_dense_maps, name_of
from reconx_pl.geometry.estimators.lenses import Lenses
from reconx_pl.geometry.point_maps import depth_from_point_map
from reconx_pl.geometry.view_order import view_order
from reconx_pl.reconstruction.one_photograph import geometry_note
from reconx_pl.reconstruction.views import GEOMETRY_FILE, VIEWS_FILE
from reconx_pl.types import Progress
from reconx_pl.visualization.html import plural


def find_geometry(
    photographs: Photographs, estimator: PointMapEstimator, skip_unplaced: bool, folder: Path, progress: Progress
) -> list[str]:
    """Write cameras, points, depth where the estimator gives it for every pixel, and the order; return notes.

    Args:
        photographs: see there.
        estimator: finds cameras and points.
        skip_unplaced: go on without those that it finds no place for.
        folder: of the stage.
        progress: counts what the stage counts.

    Raises:
        BadSceneError: they cannot be reconstructed together; names them.
    """
    placed, found = _estimate(photographs, estimator, skip_unplaced, progress)
    cameras = resize_cameras(found.cameras.to("cpu", torch.float32), *photographs.images.shape[-2:])
    cameras.check("the cameras that were found")
    depth = confidence = None
    if has_dense_maps(estimator):
        depth, confidence = depth_from_point_map(found.point_map, found.cameras), found.point_map.confidence
    order = view_order(cameras, found.cloud)
    visited = list(order.order)
    save_tensors(
        {
            **camera_tensors(cameras[visited]),
            **cloud_tensors(found.cloud),
            "depth": None if depth is None else depth[visited],
            "confidence": None if confidence is None else confidence[visited],
        },
        folder / GEOMETRY_FILE,
    )
    write_json(folder / VIEWS_FILE, {"photographs": [placed[view] for view in visited], "closed": order.closed})
    lost = [photographs.names[at] for at in range(len(photographs.names)) if at not in placed]
    notes = [f"{len(found.cloud)} points and {plural(len(placed), 'camera')}, found by {name_of(estimator)}"]
    if len(photographs) == 1:
        notes.append(geometry_note(name_of(estimator), cameras, photographs.focals[0]))
    if lost:
        notes.append(f"left out, as no place was found for them: {', '.join(lost)}")
    if order.closed:
        notes.append("the path through the photographs is closed: the last one is a neighbour of the first")
    return notes


def _estimate(
    photographs: Photographs, estimator: PointMapEstimator, skip_unplaced: bool, progress: Progress
) -> tuple[list[int], Reconstruction]:
    """Numbers of the photographs that have a place, and what was found for them."""
    placed = list(range(len(photographs.names)))
    while True:
        try:
            return placed, estimator.estimate(
                photographs.images[placed], None, **_what_it_takes(estimator, photographs, placed, progress)
            )
        except UnplacedViewsError as error:
            left = [at for number, at in enumerate(placed) if number not in error.views]
            if not skip_unplaced:
                raise UnplacedViewsError(
                    f"{error}. To go on without them: --skip_unplaced true", error.views
                ) from error
            if len(left) < 2:
                raise BadSceneError(f"{error}. Fewer than two photographs are left") from error
            placed = left


def _what_it_takes(
    estimator: PointMapEstimator, photographs: Photographs, placed: Sequence[int], progress: Progress
) -> dict[str, Any]:
    """Of names, lenses, progress and what was cropped what the estimator's ``estimate`` has a parameter for."""
    lenses = Lenses(tuple(photographs.lenses[at] for at in placed), tuple(photographs.focals[at] for at in placed))
    offered = {
        "names": [photographs.sources[at] for at in placed],
        "lenses": lenses,
        "progress": progress,
        "cropped": [photographs.names[at] for at in placed if photographs.names[at] in photographs.cropped],
    }
    wanted = arguments_of(estimator)
    return {name: value for name, value in offered.items() if name in wanted}
