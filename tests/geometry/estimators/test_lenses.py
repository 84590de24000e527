"""Structure from motion of photographs from several lenses, with focal lengths from EXIF."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from reconx_pl.data.formats.posed import read_posed
from reconx_pl.data.procedural import procedural_scene, procedural_views, render_scene
from reconx_pl.errors import ConfigurationError
from reconx_pl.geometry.estimators.colmap import ColmapEstimator
from reconx_pl.geometry.estimators.lenses import Lenses
from reconx_pl.geometry.similarity import align
from reconx_pl.types import Cameras

pytest.importorskip("pycolmap", reason="structure from motion needs pycolmap")
HEIGHT, WIDTH, WIDE = 240, 320, 0.75


class Views:
    """Five views of a landscape by one lens, and by two: every second one by a wider one."""

    def __init__(self) -> None:
        frames, _, self.cameras = procedural_views(5, [0, 0.25, 0.5, 0.75, 1], (HEIGHT, WIDTH), kind="landscape")
        self.images = frames.float() / 255
        self.focal = float(self.cameras.intrinsics[0, 0, 0])
        lens = self.cameras.intrinsics.clone()
        lens[1::2, [0, 1], [0, 1]] *= WIDE
        self.mixed_cameras = replace(self.cameras, intrinsics=lens)
        self.mixed = render_scene(procedural_scene(5, "landscape").scene, self.mixed_cameras, 2).frames.float() / 255


@pytest.fixture(scope="module")
def views() -> Views:
    return Views()


def focals(found: Cameras) -> Tensor:
    return found.intrinsics[:, 0, 0]


def test_every_lens_has_its_focal_length(views: Views) -> None:
    found = ColmapEstimator().estimate(views.mixed, lenses=Lenses((4, 9, 4, 9, 4), (None,) * 5))
    truth = focals(views.mixed_cameras)
    assert (focals(found.cameras) / truth - 1).abs().max() < 0.05
    assert len(set(focals(found.cameras).tolist())) == 2
    _, quality = align(found, views.mixed_cameras)
    assert max(quality.rotation_degrees) < 0.5 and max(quality.translation_percent) < 1
    shared = ColmapEstimator().estimate(views.mixed)
    assert max(align(shared, views.mixed_cameras)[1].translation_percent) > 2 * max(quality.translation_percent)


def test_one_lens_of_which_nothing_is_known_is_the_default(views: Views) -> None:
    default, told = (
        ColmapEstimator().estimate(views.images, lenses=lenses) for lenses in (None, Lenses((0,) * 5, (None,) * 5))
    )
    assert torch.equal(default.cloud.points, told.cloud.points)
    assert torch.equal(default.cameras.world_to_camera, told.cameras.world_to_camera)
    assert torch.equal(default.cameras.intrinsics, told.cameras.intrinsics)


def test_two_photographs_keep_what_is_known_and_find_the_rest(views: Views) -> None:
    wrong = 1.03 * views.focal
    found = ColmapEstimator().estimate(views.images[[1, 3]], lenses=Lenses((0, 0), (wrong, None)))
    assert focals(found.cameras).tolist() == pytest.approx([wrong, wrong])
    truth = focals(views.mixed_cameras)
    found = ColmapEstimator().estimate(views.mixed[[0, 1]], lenses=Lenses((0, 1), (None, float(truth[1]))))
    assert float(focals(found.cameras)[1]) == pytest.approx(float(truth[1]))
    assert float(focals(found.cameras)[0]) == pytest.approx(views.focal, rel=0.1)
    assert max(align(found, views.mixed_cameras[[0, 1]])[1].rotation_degrees) < 2


def test_more_photographs_refine_what_is_known(views: Views) -> None:
    lenses = Lenses((0,) * 5, (1.1 * views.focal,) * 5)
    found = ColmapEstimator().estimate(views.images, lenses=lenses)
    assert (focals(found.cameras) / views.focal - 1).abs().max() < 0.02


def test_exif_that_the_photographs_refute_is_not_kept(views: Views, caplog: pytest.LogCaptureFixture) -> None:
    lenses = Lenses((0,) * 5, (1.5 * views.focal,) * 5)
    found = ColmapEstimator().estimate(views.images, lenses=lenses)
    assert (focals(found.cameras) / views.focal - 1).abs().max() < 0.02
    assert "-34 % off the one given" in caplog.text or "-33 % off the one given" in caplog.text


def test_exif_is_kept_where_the_photographs_do_not_tell(shared_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From the air everything is flat, and a lens three times as long explains the photographs as well."""
    folder = shared_dir / "scenes" / "brighton_beach"
    if not folder.is_dir():
        pytest.skip("needs the photographs of brighton_beach, which are not part of the repository")
    raw = read_posed(folder)
    images = torch.stack([torch.from_numpy(raw.load_image(view).copy()) for view in range(4)]).permute(0, 3, 1, 2) / 255
    cameras = raw.cameras[[0, 1, 2, 3]].to(dtype=torch.float32)
    near = 1.02 * float(focals(cameras)[0])
    with caplog.at_level(logging.WARNING):
        found = ColmapEstimator(features=3000).estimate(images, lenses=Lenses((0,) * 4, (near,) * 4))
    assert focals(found.cameras).tolist() == pytest.approx([near] * 4) and caplog.text == ""
    assert max(align(found, cameras)[1].rotation_degrees) < 1


def test_the_option_overrules_exif(views: Views) -> None:
    found = ColmapEstimator(focal=views.focal).estimate(views.images, lenses=Lenses((0, 0, 0, 1, 1), (900.0,) * 5))
    assert focals(found.cameras).tolist() == pytest.approx([views.focal] * 5)


def test_a_pinhole_with_two_focal_lengths_starts_from_one(views: Views) -> None:
    known = Lenses((0, 0), (views.focal,) * 2)
    found = ColmapEstimator("PINHOLE").estimate(views.images[[1, 3]], lenses=known)
    assert found.cameras.intrinsics[:, [0, 1], [0, 1]].flatten().tolist() == pytest.approx([views.focal] * 4)


def test_groups_take_the_median_in_the_order_of_their_views() -> None:
    lenses = Lenses((7, 2, 7, 2, 7), (500.0, None, 510.0, None, 900.0))
    assert lenses.cameras() == [([0, 2, 4], 510.0), ([1, 3], None)] and len(lenses) == 5


def test_lenses_that_do_not_fit(views: Views) -> None:
    with pytest.raises(ConfigurationError, match="2 groups do not go with 1 focal lengths"):
        Lenses((0, 0), (None,))
    for focal in (0.0, -3.0, float("nan")):
        with pytest.raises(ConfigurationError, match="a focal length is positive"):
            Lenses((0,), (focal,))
    pair = Lenses((0, 0), (None, None))
    with pytest.raises(ConfigurationError, match="lenses of 2 views do not go with 5 images"):
        ColmapEstimator().estimate(views.images, lenses=pair)
    with pytest.raises(ConfigurationError, match="cameras or lenses, not both"):
        ColmapEstimator().estimate(views.images[:2], views.cameras[:2], lenses=pair)
