"""Which clips of a scene are cut: random skips within a clip, and bounds of the overlap where geometry is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from raw_scenes import known_cameras, reference, write_posed

from reconx_pl.data.formats.scene import RawScene
from reconx_pl.data.packing.clip_sampling import PackOptions, choose_clips, scene_clip
from reconx_pl.data.packing.overlap import view_overlap
from reconx_pl.data.packing.packing import pack
from reconx_pl.data.shards.manifest import Manifest
from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.types import Cameras

JITTERED = PackOptions(frames=32, min_stride=1, max_stride=6, jitter=0.5, clips_per_scene=30)
SMALL = PackOptions(frames=3, height=32, width=32, max_stride=2, points=64, min_points=4, clips_per_shard=2)


def test_skips_are_random_and_the_ends_stay() -> None:
    jittered = choose_clips(300, JITTERED, np.random.default_rng(3))
    assert len(jittered) == 30
    assert jittered == choose_clips(300, JITTERED, np.random.default_rng(3))
    for clip in jittered:
        steps = np.diff(clip)
        stride = (clip[-1] - clip[0]) / 31
        assert len(clip) == 32 and stride == round(stride) and clip[0] >= 0 and clip[-1] < 300
        assert steps.min() >= 1 and np.abs(steps - stride).max() <= round(0.5 * stride)
        assert (steps != stride).any() == (stride > 1)
    # the ends are those that were drawn without jitter
    plain = choose_clips(300, replace(JITTERED, jitter=0.0), np.random.default_rng(3))
    assert [(clip[0], clip[-1]) for clip in jittered] == [(clip[0], clip[-1]) for clip in plain]
    assert all(isinstance(clip, range) for clip in plain)


def test_jitter_is_bounded_and_the_frame_rate_is_that_of_the_step(tmp_path: Path) -> None:
    full = choose_clips(400, replace(JITTERED, jitter=1.0, min_stride=3), np.random.default_rng(0))
    steps = np.concatenate([np.diff(clip) for clip in full])
    assert steps.min() == 1 and steps.max() > 6
    scene = reference(write_posed(tmp_path, fps=30.0))
    assert scene_clip(scene, [0, 1, 4], 24, 24).fps == 15.0


@pytest.mark.parametrize("wrong", [{"jitter": 1.5}, {"jitter": -0.1}, {"min_overlap": 0.8, "max_overlap": 0.5}])
def test_options_that_make_no_sense(wrong: dict) -> None:
    with pytest.raises(ConfigurationError):
        PackOptions(**wrong)


def sideways(shift: float, views: int = 5) -> Cameras:
    """Cameras one unit before a wall, each ``shift`` fields of view to the right; 64 x 48 pixels, field 1 x 0.75."""
    cameras = known_cameras(views)
    pose = torch.eye(4, dtype=torch.float64).repeat(views, 1, 1)
    pose[:, 0, 3] = -shift * torch.arange(views)
    intrinsics = torch.tensor([[64.0, 0, 32], [0, 64, 24], [0, 0, 1]], dtype=torch.float64).repeat(views, 1, 1)
    return replace(cameras, world_to_camera=pose, intrinsics=intrinsics)


def wall(folder: Path, geometry: str, shift: float = 0.25) -> RawScene:
    write_posed(folder, sideways(shift), name=geometry)
    if geometry == "depth":
        np.savez(folder / "depth.npz", depths=np.ones((5, 48, 64), np.float32))
    elif geometry == "points":
        x, y = np.meshgrid(np.linspace(-1, 3, 401), np.linspace(-0.5, 0.5, 51))
        xyz = np.stack([x.ravel(), y.ravel(), np.ones(x.size)], axis=-1)
        np.savez(folder / "points.npz", xyz=xyz, rgb=np.zeros(xyz.shape, np.uint8))
    return reference(folder)


@pytest.mark.parametrize("geometry", ["depth", "points"])
def test_overlap_of_views_of_a_wall(tmp_path: Path, geometry: str) -> None:
    scene = wall(tmp_path, geometry)
    for last, share in ((0, 1.0), (1, 0.75), (3, 0.25), (4, 0.0)):
        assert view_overlap(scene, 0, last, 48, 64) == pytest.approx(share, abs=0.02)
    # the field is that of the crop: 48 of the 64 columns, so that a quarter of the whole is a third of what is packed
    assert view_overlap(scene, 0, 1, 48, 48) == pytest.approx(2 / 3, abs=0.02)


def test_overlap_counts_points_that_the_first_view_found(tmp_path: Path) -> None:
    scene = wall(tmp_path, "points")
    assert scene.cloud is not None
    right = np.flatnonzero((scene.cloud.points[:, 0] > 0.3).numpy())
    frames = (replace(scene.frames[0], observed=right), *scene.frames[1:])
    assert view_overlap(replace(scene, frames=frames), 0, 3, 48, 64) == 1.0


def test_clips_within_bounds_of_the_overlap(tmp_path: Path) -> None:
    scene = wall(tmp_path / "depth", "depth")
    options = replace(SMALL, height=48, width=64, min_overlap=0.4, clips_per_scene=9)  # gaps 2 and 4: 0.5 and 0
    assert pack([scene], tmp_path / "out", options).packed == 3
    assert all(k in Manifest.load(tmp_path / "out").settings for k in ("min_overlap",))
    assert "jitter" not in Manifest.load(tmp_path / "out").settings
    far = replace(options, min_overlap=0.0, max_overlap=0.1)
    assert pack([scene], tmp_path / "far", far).packed == 1
    with pytest.raises(BadSceneError, match=r"clips overlap by 0\.00 to 0\.50, never by 0\.9 to 1"):
        pack([scene], tmp_path / "none", replace(options, min_overlap=0.9))
    with pytest.raises(BadSceneError, match="need depth or points, which this scene has not"):
        pack([wall(tmp_path / "bare", "none")], tmp_path / "none", options)


def test_a_real_reconstruction_has_less_overlap_farther_away(shared_dir: Path) -> None:
    scene = reference(shared_dir / "scenes/banana")
    near, far = (view_overlap(scene, 0, last, 256, 256) for last in (1, 6))
    assert near is not None and far is not None and far < near <= 1
