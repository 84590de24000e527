"""Which cameras a view generator is asked for in an evaluation, and that it sees nothing else of the hidden frames."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_scenes import CONFIG, CrossFade, tiny_clip

from reconx_pl.errors import ConfigurationError
from reconx_pl.evaluation.scene import evaluate_scene
from reconx_pl.evaluation.task import clip_task
from reconx_pl.geometry.cameras import interpolate_cameras
from reconx_pl.geometry.clip_paths import path_cameras
from reconx_pl.reconstruction.input_views import InputViews
from reconx_pl.reconstruction.pair_clips import pair_clips
from reconx_pl.reconstruction.scene_builder import FrameSequence, generate_sequence
from reconx_pl.splatting.fit import FitConfig
from reconx_pl.splatting.losses import LossWeights
from reconx_pl.types import Cameras, Clip

ONE_STEP = replace(
    CONFIG, fit=FitConfig(steps=1, loss=LossWeights(lpips=0.0)), metrics=("psnr",), two_views=False, nearest_input=False
)


@pytest.fixture(scope="module")
def clip() -> Clip:
    """Its cameras are not evenly spaced."""
    clip = tiny_clip(3)
    return replace(clip, cameras=interpolate_cameras(clip.cameras[[0, 4]], [0.0, 0.1, 0.3, 0.8, 1.0]))


def even(clip: Clip) -> torch.Tensor:
    return interpolate_cameras(clip.cameras[[0, 4]], [0, 0.25, 0.5, 0.75, 1]).world_to_camera


@pytest.mark.parametrize("policy", ["dataset", "interpolated"])
def test_frames_are_asked_for_at_the_cameras_of_the_pose_policy(clip: Clip, policy: str) -> None:
    generator = CrossFade()
    result = evaluate_scene(clip, generator, replace(ONE_STEP, pose_policy=policy))
    (seen,) = generator.seen
    asked = clip.cameras.world_to_camera if policy == "dataset" else even(clip)
    torch.testing.assert_close(seen.cameras.world_to_camera, asked, atol=1e-6, rtol=0)
    assert torch.equal(seen.cameras.world_to_camera[[0, -1]], clip.cameras.world_to_camera[[0, -1]])
    assert not torch.allclose(clip.cameras.world_to_camera[1:-1], even(clip)[1:-1], atol=1e-3)
    # frames between are hidden in both, what belongs to the two views is not
    assert int(seen.frames[1:-1].sum()) == 0 and torch.equal(seen.frames[[0, -1]], clip.frames[[0, -1]])
    assert torch.equal(seen.depth, clip.depth) and torch.equal(seen.confidence, clip.confidence)  # type: ignore[arg-type]
    # and they are fitted where they were asked for
    torch.testing.assert_close(result.given.cameras.world_to_camera, asked, atol=1e-6, rtol=0)


def test_a_shard_s_hidden_frames_reach_neither_policy(clip: Clip) -> None:
    """The same is generated whatever the hidden frames are; under ``interpolated`` also wherever they are."""
    other = replace(clip, frames=clip.frames.clone())
    other.frames[1:-1] = 255 - other.frames[1:-1]
    turned = replace(other, cameras=clip.cameras[[0, 3, 2, 1, 4]])
    for policy, hidden in (("dataset", other), ("interpolated", turned)):
        shown = []
        for one in (clip, hidden):
            generator = CrossFade()
            task = clip_task(one, replace(ONE_STEP, pose_policy=policy))
            cameras = one.cameras if policy == "dataset" else None
            generate_sequence(task.inputs, task.clips, generator, 0, torch.device("cpu"), cameras=cameras)
            shown += generator.seen
        assert torch.equal(shown[0].frames, shown[1].frames)
        assert torch.equal(shown[0].cameras.world_to_camera, shown[1].cameras.world_to_camera)


# --- sequences of several clips


def three_views(closed: bool = False) -> InputViews:
    clip = tiny_clip(5)
    return InputViews(
        "room", clip.images[[0, 2, 4]], clip.cameras[[0, 2, 4]], clip.cloud, indices=(0, 2, 4), closed=closed
    )


def sequence(inputs: InputViews, cameras: Cameras | None) -> tuple[FrameSequence, CrossFade]:
    generator = CrossFade()
    clips = pair_clips(inputs, 4)
    return generate_sequence(inputs, clips, generator, 0, torch.device("cpu"), cameras=cameras), generator


@pytest.mark.parametrize("closed", [False, True])
def test_each_clip_gets_its_part_of_the_path(closed: bool) -> None:
    inputs = three_views(closed)
    knots = inputs.cameras[inputs.visited]
    path = path_cameras(knots, 4)
    uneven = interpolate_cameras(knots, torch.linspace(0, 1, len(path), dtype=torch.float64) ** 2 * (len(knots) - 1))
    made, generator = sequence(inputs, uneven)
    clips = 3 if closed else 2
    assert len(generator.seen) == clips and made.input_places == [0, 3, 6]
    assert len(made.images) == len(made.cameras) == (9 if closed else 7)
    for number, seen in enumerate(generator.seen):
        own = uneven.world_to_camera[3 * number : 3 * number + 4]
        assert torch.equal(seen.cameras.world_to_camera[1:3], own[1:3])
        # the views' own, to the bit
        view = inputs.visited[number]
        assert torch.equal(seen.cameras.world_to_camera[0], inputs.cameras.world_to_camera[view])
    assert torch.equal(made.cameras.world_to_camera[made.input_places], inputs.cameras.world_to_camera)
    assert torch.equal(made.cameras.world_to_camera[1], uneven.world_to_camera[1])
    if closed:  # the path may leave out the first camera at its end
        again, other = sequence(inputs, uneven[list(range(9))])
        assert torch.equal(again.images, made.images)
        last = [g.seen[-1].cameras.world_to_camera for g in (generator, other)]
        assert torch.equal(last[0][:3], last[1][:3]) and torch.equal(last[0][3], last[1][3])


@pytest.mark.parametrize(("closed", "count"), [(False, 6), (False, 8), (True, 8), (True, 11)])
def test_a_path_of_another_length_is_refused(closed: bool, count: int) -> None:
    inputs = three_views(closed)
    path = path_cameras(inputs.cameras[[0, 1, 2, 0]], 6)[list(range(count))]
    with pytest.raises(ConfigurationError, match=f"room: a path of {count} cameras does not go with"):
        sequence(inputs, path)
