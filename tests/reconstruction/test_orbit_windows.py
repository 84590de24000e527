"""360 degrees with a stand-in view generator: photographs to the bit, each clip sees its two conditions alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rank_program import tiny_network

from reconx_pl.data.procedural import procedural_clip
from reconx_pl.diffusion.pipeline import SamplingConfig, SamplingPipeline
from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.camera_paths import orbit_path
from reconx_pl.geometry.cameras import interpolate_cameras
from reconx_pl.geometry.closed_paths import closed_loop, path_through
from reconx_pl.geometry.estimators.base import Reconstruction
from reconx_pl.geometry.point_maps import cloud_from_maps, point_map_from_depth
from reconx_pl.reconstruction.orbit_windows import OrbitConfig, generate_orbit
from reconx_pl.types import Cameras, Clip, PointCloud

CONFIG = OrbitConfig(frames=8, end_condition_frame=4)


class Turntable:
    """Knows the world: a frame's red is its place in the sequence. Remembers what it was shown, and the draws."""

    def __init__(self, total: int) -> None:
        self.total, self.shown, self.draws = total, [], []

    def frame(self, place: int) -> torch.Tensor:
        picture = torch.zeros(3, 16, 16)
        picture[0] = place / 255
        return picture

    def generate(self, clip: Clip, generator: torch.Generator, *, end_condition_frame: int) -> torch.Tensor:
        self.shown.append((clip, end_condition_frame))
        self.draws.append(float(torch.rand((), generator=generator)))
        start, ahead = (round(float(clip.images[step, 0].mean()) * 255) for step in (0, end_condition_frame))
        assert ahead == (start + end_condition_frame) % self.total  # it was told the truth
        return torch.stack([self.frame((start + step) % self.total) for step in range(len(clip.frames))])


def scene(total: int = 30) -> tuple[torch.Tensor, list[int], Cameras, PointCloud, Turntable]:
    clip = procedural_clip(1, frames=5, size=(16, 16), points=300, kind="room")
    cameras = interpolate_cameras(clip.cameras[[0, 4]], [0.0, 1.0])
    view_generator = Turntable(total)
    assert clip.cloud is not None
    path = interpolate_cameras(cameras[[0, 1, 0]], 2 * torch.arange(total, dtype=torch.float64) / total)
    path.world_to_camera[4] = cameras.world_to_camera[1]
    photographs = torch.stack([view_generator.frame(0), view_generator.frame(4)])
    photographs[:, 2] = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0))  # not of 8 bits
    return photographs, [0, 4], path, clip.cloud, view_generator


def test_the_sequence_has_the_photographs_to_the_bit_and_closes() -> None:
    photographs, places, path, cloud, view_generator = scene()
    done: list[tuple[str, int, int | None]] = []
    around = generate_orbit(
        photographs, places, path, cloud, view_generator, CONFIG, progress=lambda *call: done.append(call)
    )
    assert around.shape == (30, 3, 16, 16) and bool(torch.isfinite(around).all())
    assert torch.equal(around[places], photographs)
    for place in set(range(30)) - set(places):
        assert torch.equal(around[place], view_generator.frame(place))
    last, end_condition_frame = view_generator.shown[-1]
    assert end_condition_frame == 7 and last.frame_indices[7] == 0  # interpolated onto the first photograph
    assert torch.equal(last.frames[7], (photographs[0] * 255).round().to(torch.uint8))
    clips = len(view_generator.shown)
    assert done == [("generating clips", number, clips) for number in range(1, clips + 1)]
    assert len(set(view_generator.draws)) == len(view_generator.draws)  # every clip has noise of its own


def test_clips_are_blind_and_in_the_world_of_their_cameras() -> None:
    photographs, places, path, cloud, view_generator = scene()
    generate_orbit(photographs, places, path, cloud, view_generator, CONFIG)
    for clip, end_condition_frame in view_generator.shown:
        hidden = [step for step in range(8) if step not in (0, end_condition_frame)]
        assert not clip.frames[hidden].any() and clip.depth is None
        assert torch.equal(clip.cameras.world_to_camera, path.world_to_camera[list(clip.frame_indices)])
        assert clip.cloud is cloud


def test_the_same_seed_generates_the_same() -> None:
    photographs, places, path, cloud, view_generator = scene()
    other = Turntable(30)
    generate_orbit(photographs, places, path, cloud, view_generator, CONFIG)
    generate_orbit(photographs, places, path, cloud, other, CONFIG)
    assert view_generator.draws == other.draws
    third = Turntable(30)
    generate_orbit(photographs, places, path, cloud, third, replace(CONFIG, seed=1))
    assert third.draws[0] != view_generator.draws[0]


class Wall:
    """An estimator that puts a wall before the two frames that it is given; at ``fails`` it cannot."""

    def __init__(self, fails: int = -1) -> None:
        self.seen, self.fails = [], fails

    def estimate(self, images: torch.Tensor, cameras: Cameras | None = None) -> Reconstruction:
        if len(self.seen) == self.fails:
            raise BadSceneError("nothing matches")
        self.seen.append((images, cameras))
        maps = point_map_from_depth(torch.full(images[:, 0].shape, 3.0), cameras)
        return Reconstruction(cameras, maps, cloud_from_maps(maps, images, 50))


def test_an_estimator_makes_a_cloud_for_each_clip() -> None:
    photographs, places, path, _, view_generator = scene()
    wall = Wall()
    generate_orbit(photographs, places, path, wall, view_generator, CONFIG)
    assert len(wall.seen) == len(view_generator.shown)
    for (images, cameras), (clip, end_condition_frame) in zip(wall.seen, view_generator.shown, strict=True):
        assert torch.equal(cameras.world_to_camera, clip.cameras.world_to_camera[[0, end_condition_frame]])
        assert (images - clip.images[[0, end_condition_frame]]).abs().max() <= 0.5 / 255 + 1e-6
    with pytest.raises(BadSceneError, match="window-1, frames 3 and 7: nothing matches"):
        generate_orbit(photographs, places, path, Wall(fails=1), Turntable(30), CONFIG)


def test_what_does_not_go_together_is_refused() -> None:
    photographs, places, path, cloud, view_generator = scene()
    with pytest.raises(ConfigurationError, match="3 places"):
        generate_orbit(photographs, [0, 4, 8], path, cloud, view_generator, CONFIG)
    with pytest.raises(ConfigurationError, match="resize or crop"):
        generate_orbit(photographs[..., :8], places, path, cloud, view_generator, CONFIG)
    broken = Turntable(30)
    broken.frame = lambda place: torch.full((3, 16, 16), torch.nan)  # type: ignore[method-assign]
    with pytest.raises(BadSceneError, match="window-0.*NaN"):
        generate_orbit(photographs, places, path, cloud, broken, CONFIG)


@pytest.mark.parametrize("structure", [True, False])
def test_a_diffusion_model_generates_all_around(structure: bool) -> None:
    clip = procedural_clip(1, frames=5, size=(16, 16), points=300, kind="room")
    assert clip.cloud is not None
    cameras = clip.cameras[[0, 2, 4]]
    path, places = closed_loop(cameras, 4)
    photographs = clip.images[[0, 2, 4]]
    view_generator = SamplingPipeline(tiny_network().eval(), SamplingConfig(num_inference_steps=1, structure=structure))
    config = OrbitConfig(frames=4, end_condition_frame=2)
    around = generate_orbit(photographs, places, path, clip.cloud, view_generator, config)
    assert around.shape == (9, 3, 16, 16) and torch.equal(around[places], photographs)
    again = generate_orbit(photographs, places, path, clip.cloud, view_generator, config)
    assert torch.equal(again, around)
    away = PointCloud(clip.cloud.points + 1e4, clip.cloud.colors, clip.cloud.confidence)
    if structure:
        with pytest.raises(BadSceneError, match="window-0: frames 0 and 3 see fewer than 4 points"):
            generate_orbit(photographs, places, path, away, view_generator, config)
    else:
        assert torch.equal(generate_orbit(photographs, places, path, away, view_generator, config), around)


def test_an_orbit_through_two_photographs_is_generated_by_extrapolation() -> None:
    clip = procedural_clip(1, frames=5, size=(16, 16), points=300, kind="room")
    assert clip.cloud is not None
    cameras, photographs = clip.cameras[[0, 4]], clip.images[[0, 4]]
    path, places = path_through(orbit_path(cameras, 24, clip.cloud.points), cameras)
    assert torch.equal(path.world_to_camera[places], cameras.world_to_camera)
    view_generator = SamplingPipeline(tiny_network().eval(), SamplingConfig(num_inference_steps=1, structure=False))
    told, generate = [], view_generator.generate
    view_generator.generate = lambda *args, end_condition_frame: (
        told.append(end_condition_frame) or generate(*args, end_condition_frame=end_condition_frame)
    )  # type: ignore
    around = generate_orbit(
        photographs, places, path, clip.cloud, view_generator, OrbitConfig(frames=4, end_condition_frame=2)
    )
    assert around.shape == (24, 3, 16, 16) and torch.equal(around[places], photographs)
    assert bool(torch.isfinite(around).all()) and told[-1] == 3 and 2 in told
