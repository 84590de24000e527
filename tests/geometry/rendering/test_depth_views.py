"""What counts as known of views with depth."""

from __future__ import annotations

import pytest
import torch

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.rendering.views import DepthViews
from reconx_pl.types import Cameras

NAN, INF = float("nan"), float("inf")


def cameras(views: int, height: int, width: int) -> Cameras:
    return Cameras(torch.eye(4).repeat(views, 1, 1), torch.eye(3).repeat(views, 1, 1), height, width)


def test_unknown_depth_is_zero_and_sky_stays_infinite() -> None:
    depth = torch.tensor([[[2.0, 0.0, -1.0], [NAN, INF, -INF]]])
    views = DepthViews(torch.zeros(1, 3, 2, 3), depth, cameras(1, 2, 3))
    assert views.known(5.0).depth.tolist() == [[[2.0, 0.0, 0.0], [0.0, INF, 0.0]]]  # no confidence: all are trusted
    assert views.finite.sum() == 1 and views.sky.sum() == 1


def test_doubtful_pixels_become_unknown_sky_included() -> None:
    depth = torch.tensor([[[2.0, 3.0], [INF, INF]]])
    confidence = torch.tensor([[[1.5, 1.49], [9.0, 1.0]]])
    views = DepthViews(torch.zeros(1, 3, 2, 2), depth, cameras(1, 2, 2), confidence)
    assert views.known(1.5).depth.tolist() == [[[2.0, 0.0], [INF, 0.0]]]
    assert torch.equal(views.known().depth, depth)


def test_nothing_known_names_the_remedy() -> None:
    views = DepthViews(torch.zeros(1, 3, 2, 2), torch.ones(1, 2, 2), cameras(1, 2, 2), torch.full((1, 2, 2), 2.0))
    with pytest.raises(BadSceneError, match="no pixel has a confidence of at least 2.5; lower min_confidence"):
        views.known(2.5)
    nowhere = DepthViews(views.images, torch.full((1, 2, 2), NAN), views.cameras)
    with pytest.raises(BadSceneError, match="no pixel of any view has a depth"):
        nowhere.known()


@pytest.mark.parametrize(
    ("images", "depth", "size", "confidence", "said"),
    [
        ((2, 3, 4, 5), (2, 4, 6), (2, 4, 5), None, r"images \(2, 3, 4, 5\) and depth \(2, 4, 6\)"),
        ((2, 4, 4, 5), (2, 4, 5), (2, 4, 5), None, r"images \(2, 4, 4, 5\)"),
        ((2, 3, 4, 5), (2, 4, 5), (3, 4, 5), None, r"depth \(2, 4, 5\) does not go with 3 cameras of 4 x 5"),
        ((2, 3, 4, 5), (2, 4, 5), (2, 5, 4), None, "2 cameras of 5 x 4 pixels"),
        ((2, 3, 4, 5), (2, 4, 5), (2, 4, 5), (2, 5, 4), r"confidence \(2, 5, 4\) does not go with depth \(2, 4, 5\)"),
    ],
)
def test_shapes_that_do_not_go_together(
    images: tuple[int, ...],
    depth: tuple[int, ...],
    size: tuple[int, int, int],
    confidence: tuple[int, ...] | None,
    said: str,
) -> None:
    trust = None if confidence is None else torch.ones(confidence)
    with pytest.raises(ConfigurationError, match=said):
        DepthViews(torch.zeros(images), torch.ones(depth), cameras(*size), trust)


def test_moving_takes_everything_along() -> None:
    views = DepthViews(torch.zeros(1, 3, 2, 2), torch.ones(1, 2, 2), cameras(1, 2, 2)).to(dtype=torch.float64)
    assert views.depth.dtype == views.cameras.intrinsics.dtype == torch.float64 and views.confidence is None
