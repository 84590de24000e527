"""Clouds of an estimator in the shards: what was found, in the clip's world, in half the bytes, and once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reconx_pl.cli.main import main
from reconx_pl.data.procedural import write_procedural
from reconx_pl.data.shards.clouds import CloudPrecomputer
from reconx_pl.data.shards.manifest import Manifest
from reconx_pl.data.shards.precompute import precompute_shards
from reconx_pl.data.shards.schema import decode_clip, encode_clip, encode_geometry
from reconx_pl.data.shards.stream import ClipStream, read_clips
from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.cameras import project
from reconx_pl.geometry.estimators.base import KnownDepth, Reconstruction
from reconx_pl.geometry.procrustes import Similarity
from reconx_pl.types import Cameras, Clip

HALF = 2**-11  # relative rounding of float16


class Sensor:
    """Depth of procedural clips behind the protocol; may fail, and may stand in a world of its own."""

    identity = "Sensor 1"

    def __init__(self, clips: list[Clip], fails: str | None = None, turned: float = 0.0) -> None:
        self.clips, self.fails, self.turned, self.seen = clips, fails, turned, 0

    def estimate(self, images: Tensor, cameras: Cameras | None = None) -> Reconstruction:
        assert images.shape[0] == 2
        clip = next(clip for clip in self.clips if torch.equal(clip.images[[0, -1]], images))
        self.seen += 1
        if clip.key == self.fails:
            raise BadSceneError("these two share nothing")
        assert clip.depth is not None
        own = clip.cameras[[0, -1]] if cameras is None else cameras
        found = KnownDepth(clip.depth, points=50).estimate(images, own)
        if cameras is not None:
            return found
        world = Similarity(torch.tensor(3.0).double(), rotation_z(0.7), torch.tensor([1.0, -2.0, 0.5]).double())
        cameras = world.transform_cameras(own)
        if self.turned:  # orientations that the clip's do not have
            pose = cameras.world_to_camera.clone()
            pose[1, :3] = rotation_z(self.turned).to(pose) @ pose[1, :3]
            cameras = replace(cameras, world_to_camera=pose)
        points = world.apply(found.point_map.points.double()).float()
        cloud = replace(found.cloud, points=world.apply(found.cloud.points.double()).float())
        return Reconstruction(cameras, replace(found.point_map, points=points), cloud)


def rotation_z(angle: float) -> Tensor:
    c, s = torch.tensor(angle).double().cos(), torch.tensor(angle).double().sin()
    return torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_procedural(folder, count=3, frames=3, size=(32, 32), points=20, clips_per_shard=2)
    return folder


def precompute(shards: Path, out: Path, sensor: Sensor, **options: Any) -> tuple[list[Clip], Any]:
    precomputer = CloudPrecomputer(sensor, **options)
    report = precompute_shards(shards, out, [precomputer], {"clouds": precomputer.settings})
    return list(read_clips(out)), report


@pytest.mark.parametrize("poses", ["dataset", "estimated"])
def test_what_was_found_stands_in_the_world_of_the_clip(shards: Path, tmp_path: Path, poses: str) -> None:
    clips = list(read_clips(shards))
    made, report = precompute(shards, tmp_path / "out", Sensor(clips), points=40, poses=poses)
    assert report.clips == 3 and report.missing == 0 and not report.without
    for before, after in zip(clips, made, strict=True):
        assert before.depth is not None and after.depth is not None and after.cloud is not None
        assert before.cloud is not None and len(before.cloud) == 20 and len(after.cloud) == 40
        known = torch.where(before.depth < torch.inf, before.depth, 0.0)  # an estimator does not know the sky
        torch.testing.assert_close(after.depth, known, rtol=2 * HALF, atol=0)
        assert after.confidence is not None and bool((after.confidence[after.depth > 0] == 2).all())
        ends = before.cameras[[0, -1]]
        truth = KnownDepth(before.depth, points=50).estimate(before.images[[0, -1]], ends).cloud[:40]
        pixels, expected = (project(points, ends)[0] for points in (after.cloud.points, truth.points))
        assert (pixels - expected).abs().max() < 0.05  # in farthest-point order: the same ones in the same places
        assert torch.equal(after.frames, before.frames)


def test_half_precision_holds_far_from_the_origin_and_costs_half(shards: Path) -> None:
    clip = next(read_clips(shards))
    far = torch.tensor([4000.0, -90000.0, 700.0])
    assert clip.cloud is not None
    pose = clip.cameras.world_to_camera.clone()
    pose[:, :3, 3] -= pose[:, :3, :3] @ far
    moved = replace(
        clip,
        cameras=replace(clip.cameras, world_to_camera=pose),
        cloud=replace(clip.cloud, points=clip.cloud.points + far),
    )
    members = encode_clip(moved) | encode_geometry(moved, half=True)
    back = decode_clip(members, "there.tar")
    assert back.cloud is not None and moved.cloud is not None
    assert (back.cloud.points - moved.cloud.points).abs().max() < 0.02  # of float32 itself, 90 km away
    full, half = encode_geometry(clip), encode_geometry(clip, half=True)
    for name in ("depth.npy", "confidence.npy", "cloud.npy"):
        assert len(half[name]) - 128 == (len(full[name]) - 128) / 2
    tiny = replace(clip, depth=1e-6 * clip.depth) if clip.depth is not None else clip
    assert len(encode_geometry(tiny, half=True)["depth.npy"]) == len(full["depth.npy"])  # float16 would lose it


def test_confidence_filters_and_a_clip_without_a_cloud_keeps_no_old_one(shards: Path, tmp_path: Path) -> None:
    clips = list(read_clips(shards))
    made, report = precompute(shards, tmp_path / "out", Sensor(clips, fails=clips[1].key))
    assert made[1].cloud is None and made[1].depth is None and made[0].cloud is not None
    assert report.without == [f"clip {clips[1].key}: these two share nothing"]
    made, report = precompute(shards, tmp_path / "strict", Sensor(clips), min_confidence=2.5)
    assert len(report.without) == 3 and all(clip.cloud is None for clip in made)
    made, report = precompute(shards, tmp_path / "turned", Sensor(clips, turned=1.0), poses="estimated")
    assert len(report.without) == 3 and "do not agree with those of the clip" in report.without[0]
    with pytest.raises(ConfigurationError, match="at least 1"):
        CloudPrecomputer(Sensor(clips), points=0)


def test_another_estimator_or_setting_is_refused_and_the_same_goes_on(shards: Path, tmp_path: Path) -> None:
    clips = list(read_clips(shards))
    sensor = Sensor(clips)
    precompute(shards, tmp_path / "out", sensor, points=30)
    assert sensor.seen == 3
    precompute(shards, tmp_path / "out", sensor, points=30)
    assert sensor.seen == 3
    with pytest.raises(ConfigurationError, match="other weights or settings"):
        precompute(shards, tmp_path / "out", sensor, points=31)
    (stated,) = Manifest.load(tmp_path / "out").settings["annotations"]
    assert stated["clouds"]["estimator"] == "Sensor 1" and stated["clouds"]["points"] == 30
    batch = next(iter(ClipStream(tmp_path / "out", points=30)))
    assert batch["points"].shape == (1, 30, 3)


def test_the_command_wants_something_to_make(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="nothing to make: give --config .* --estimator"):
        main(["cache", str(shards), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"dust3r_512_dpt.safetensors.*reconx weights fetch dust3r-512-dpt"):
        main(
            [
                "cache", str(shards), str(tmp_path / "out"),
                "--estimator", "reconx_pl.geometry.dust3r.pretrained.PretrainedDust3r",
                "--estimator.weights", str(tmp_path / "dust3r_512_dpt.safetensors"),
            ]
        )  # fmt: skip
    assert not (tmp_path / "out" / "manifest.json").exists()
