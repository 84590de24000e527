"""Structure from motion of few real photographs: what one start, plain matches or a guessed focal length get wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from reconx_pl.data.formats.posed import read_posed
from reconx_pl.errors import UnplacedViewsError
from reconx_pl.geometry.estimators import colmap_mapping
from reconx_pl.geometry.estimators.colmap import ColmapEstimator
from reconx_pl.geometry.estimators.lenses import Lenses
from reconx_pl.geometry.similarity import align
from reconx_pl.types import Cameras

pytest.importorskip("pycolmap", reason="structure from motion needs pycolmap")
HOUSE, FOX = "re10k_2c80f9eb0d3b2bb4", "ingp_fox"
Load = Callable[[str, Sequence[int]], tuple[Tensor, Cameras]]


@pytest.fixture
def load(shared_dir: Path) -> Load:
    def read(scene: str, views: Sequence[int]) -> tuple[Tensor, Cameras]:
        folder = shared_dir / "scenes" / scene
        if not folder.is_dir():
            pytest.skip(f"needs the photographs of {scene}, which are not part of the repository")
        raw = read_posed(folder)
        images = torch.stack([torch.from_numpy(raw.load_image(view).copy()) for view in views])
        return images.permute(0, 3, 1, 2) / 255, raw.cameras[list(views)].to(dtype=torch.float32)

    return read


def rotation_error(estimator: ColmapEstimator, images: Tensor, cameras: Cameras, focal: float | None) -> float:
    lenses = Lenses((0,) * len(images), (focal,) * len(images))
    found = estimator.estimate(images, lenses=lenses)
    return max(align(found, cameras)[1].rotation_degrees)


def test_no_start_bends_the_scene(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Walking towards a house: two of three first pairs flatten it, and cameras turn by 17 degrees."""
    images, cameras = load(HOUSE, (4, 7, 8, 11, 13, 16, 17, 20))
    focal = float(cameras.intrinsics[0, 0, 0])
    few = ColmapEstimator(features=3000)
    assert rotation_error(few, images, cameras, focal) < 1
    monkeypatch.setattr(colmap_mapping, "STARTS", (8.0,))
    assert rotation_error(ColmapEstimator(features=3000, focal=focal), images, cameras, None) > 5


def test_a_focal_length_that_nobody_knows_is_searched(load: Load) -> None:
    """COLMAP's guess of 1.2 longer sides, where 0.48 is right, ended 26 degrees off."""
    images, cameras = load(HOUSE, (4, 12, 20))
    assert rotation_error(ColmapEstimator(features=3000), images, cameras, None) < 1


def test_wide_steps_are_matched_again(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    images, cameras = load(FOX, (16, 24, 32))
    focal = float(cameras.intrinsics[0, 0, 0])
    assert rotation_error(ColmapEstimator(), images, cameras, focal) < 1.5
    monkeypatch.setattr("reconx_pl.geometry.estimators.colmap.FEW", 2)  # as of many photographs: plain matches alone
    with pytest.raises(UnplacedViewsError, match="da3-base"):
        rotation_error(ColmapEstimator(), images, cameras, focal)
