"""The second condition before the last frame: what the model is told then, in training and in generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from reconx_pl.data.procedural import procedural_clip
from reconx_pl.diffusion.conditioning.conditions import Conditions
from reconx_pl.diffusion.model import ReconXDiffusion
from reconx_pl.diffusion.pipeline import SamplingConfig, SamplingPipeline
from reconx_pl.diffusion.sampling.extrapolation import ExtrapolationConfig, seen_in_batch, seen_points
from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.cameras import relative_to_first
from reconx_pl.geometry.visibility import visible_points
from reconx_pl.types import Cameras, Clip, ClipBatch, PointCloud

FRAMES, SIDE = 3, 16


def two_sided(frames: int = FRAMES) -> Clip:
    """Points before the first frames, and points behind them that the last frame alone sees."""
    g = torch.Generator().manual_seed(0)
    before = torch.rand(40, 3, generator=g) * torch.tensor([2.0, 2.0, 1.0]) + torch.tensor([-1.0, -1.0, 3.0])
    behind = before * torch.tensor([1.0, 1.0, -1.0])
    pose = torch.eye(4).repeat(frames, 1, 1)
    pose[1:, 0, 3] = 0.1  # no camera is in the world's origin
    pose[-1] = torch.diag(torch.tensor([-1.0, 1, -1, 1]))
    intrinsics = torch.tensor([[12.0, 0, 8], [0, 12.0, 8], [0, 0, 1]]).expand(frames, 3, 3)
    points = torch.stack([before, behind], 1).flatten(0, 1)  # in turn
    return Clip(
        key="two-sided",
        dataset="",
        scene="",
        frames=torch.randint(1, 256, (frames, 3, SIDE, SIDE), generator=g).to(torch.uint8),
        cameras=Cameras(pose, intrinsics, SIDE, SIDE),
        frame_indices=tuple(range(frames)),
        fps=8.0,
        cloud=PointCloud(points, torch.zeros_like(points), torch.ones(len(points))),
    )


def batch_of(clips: Sequence[Clip]) -> ClipBatch:
    return ClipBatch(
        key=[clip.key for clip in clips],
        caption=[clip.caption for clip in clips],
        frames=torch.stack([clip.frames for clip in clips]),
        world_to_camera=torch.stack([clip.cameras.world_to_camera for clip in clips]),
        intrinsics=torch.stack([clip.cameras.intrinsics for clip in clips]),
        fps=torch.tensor([clip.fps for clip in clips]),
        points=torch.stack([clip.cloud.points for clip in clips if clip.cloud is not None]),
    )


def told(network: ReconXDiffusion, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What ``conditions`` gets and gives, call by call."""
    calls: list[dict[str, Any]] = []
    make = network.conditions

    def record(*args: Any, **options: Any) -> Conditions:
        made = make(*args, **options)
        calls.append({"latents": args[1:3], "points": args[5], "made": made})
        return made

    monkeypatch.setattr(network, "conditions", record)
    return calls


def test_the_second_latent_sits_where_it_is_put_and_zeros_elsewhere(network: ReconXDiffusion) -> None:
    first, second = torch.rand(2, 12, 4, 4), torch.rand(2, 12, 4, 4)
    arguments = torch.rand(2, 3, 8, 8), first, second, torch.ones(2), FRAMES
    last = network.conditions(*arguments).concat_latents
    assert torch.equal(last[:, :, 0], first) and torch.equal(last[:, :, 2], second) and not last[:, :, 1].any()
    assert torch.equal(network.conditions(*arguments, end_condition_frame=torch.tensor([2, 2])).concat_latents, last)
    mixed = network.conditions(*arguments, end_condition_frame=torch.tensor([1, 2])).concat_latents
    assert torch.equal(mixed[:, :, 0], first)
    assert torch.equal(mixed[0, :, 1], second[0]) and not mixed[0, :, 2].any()
    assert torch.equal(mixed[1, :, 2], second[1]) and not mixed[1, :, 1].any()


def test_training_tells_the_latent_of_the_frame_and_what_it_sees(
    network: ReconXDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, calls = two_sided(), told(network, monkeypatch)
    batch = batch_of([clip, clip])
    latents = network.encode(batch["frames"] / 255)
    network.loss(batch, torch.Generator().manual_seed(0), drop=False, end_condition_frame=torch.tensor([1, 2]))
    (call,) = calls
    assert torch.equal(call["latents"][1], torch.stack([latents[0, :, 1], latents[1, :, 2]]))
    concat = call["made"].concat_latents
    assert torch.equal(concat[0, :, 1], latents[0, :, 1]) and not concat[0, :, 2].any()
    assert torch.equal(concat[1, :, 2], latents[1, :, 2]) and not concat[1, :, 1].any()
    points = call["points"]
    assert (points[0, :, 2] > 0).all()  # nothing that the last frame alone sees
    assert torch.equal(points[1], relative_to_first(batch["points"][1], clip.cameras.world_to_camera[0]))
    assert points.shape == batch["points"].shape


def test_the_last_frame_given_or_not_is_the_same_to_the_bit(network: ReconXDiffusion) -> None:
    batch, losses = batch_of([two_sided(), two_sided()]), []
    for second in (None, torch.tensor([2, 2])):
        generator = torch.Generator().manual_seed(1)
        losses.append((network.loss(batch, generator, end_condition_frame=second).per_sample, generator.get_state()))
    assert torch.equal(losses[0][0], losses[1][0]) and torch.equal(losses[0][1], losses[1][1])
    extrapolated = network.loss(
        batch, torch.Generator().manual_seed(1), end_condition_frame=torch.tensor([1, 2])
    ).per_sample
    assert extrapolated[0] != losses[0][0][0] and torch.equal(extrapolated[1], losses[0][0][1])


def test_points_keep_their_order_and_are_made_up_by_repeats() -> None:
    clip = procedural_clip(1, frames=5, size=(32, 32), points=400, kind="room")
    assert clip.cloud is not None
    points, cameras = clip.cloud.points, clip.cameras[[0, 2]]
    seen = visible_points(points, cameras).any(0)
    kept = seen_points(points, cameras, tokens=50)
    assert kept is not None and 50 < seen.sum() < 400
    assert torch.equal(kept[: int(seen.sum())], points[seen])
    assert torch.equal(kept, points[seen][torch.arange(400) % int(seen.sum())])
    assert seen_points(points, cameras, tokens=int(seen.sum()) + 1) is None
    with torch.autocast("cpu", torch.bfloat16):  # as in a training step
        rounded = visible_points(points, cameras).any(0)
        assert not torch.equal(rounded, seen) and torch.equal(seen_points(points, cameras, tokens=50), kept)


def test_a_clip_that_sees_too_little_is_not_extrapolated() -> None:
    clip, blinded = two_sided(), two_sided()
    blinded.cameras.world_to_camera[:-1, 2, 3] = -100.0  # its first frames look away from all points
    batch = batch_of([clip, blinded])
    points, second = seen_in_batch(batch, torch.tensor([1, 1]), (SIDE, SIDE), tokens=5)
    assert second.tolist() == [1, 2]
    assert torch.equal(points[1], batch["points"][1]) and not torch.equal(points[0], batch["points"][0])


def test_a_few_steps_of_training_bring_the_loss_of_extrapolation_down(network: ReconXDiffusion) -> None:
    batch, losses = batch_of([two_sided(), two_sided()]), []
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3)
    for _ in range(12):
        optimizer.zero_grad()
        out = network.loss(
            batch, torch.Generator().manual_seed(2), drop=False, end_condition_frame=torch.tensor([1, 1])
        )
        out.loss.backward()
        assert network.structure_encoder is not None
        assert all(bool(p.grad.any()) for p in network.structure_encoder.to_kv.parameters() if p.grad is not None)
        optimizer.step()
        losses.append(float(out.loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_draws_follow_the_shares_and_the_range() -> None:
    config = ExtrapolationConfig(share=0.75, earliest=0.25, latest=0.75)
    drawn = config.draw(4000, 32, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.int64
    moved = drawn[drawn < 31]
    assert len(moved) / 4000 == pytest.approx(0.75, abs=0.03)
    assert set(moved.tolist()) == set(range(8, 24))
    assert (ExtrapolationConfig(share=1.0, earliest=0.5, latest=0.5).draw(9, 5, torch.Generator()) == 2).all()
    assert ExtrapolationConfig(earliest=0.01, latest=0.99).range(8) == (1, 6)  # neither the first nor the last
    with pytest.raises(ConfigurationError, match="2 frames has none"):
        config.draw(1, 2, torch.Generator())


@pytest.mark.parametrize(
    ("options", "says"),
    [({"share": 0.0}, "null"), ({"share": 1.1}, "share"), ({"earliest": 0.8}, "earliest"), ({"latest": 1.0}, "latest")],
)
def test_shares_out_of_range_are_refused(options: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        ExtrapolationConfig(**options)


def generate(network: ReconXDiffusion, clip: Clip, second: int | None) -> Tensor:
    config = SamplingConfig(num_inference_steps=2, guidance_scale=2.0, structure_guidance_scale=3.0)
    return SamplingPipeline(network, config).generate(
        clip, torch.Generator().manual_seed(3), end_condition_frame=second
    )


def test_generation_looks_at_the_second_view_and_no_other(
    network: ReconXDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, calls = two_sided(), told(network, monkeypatch)
    generated = generate(network, clip, 1)
    assert generated.shape == (FRAMES, 3, SIDE, SIDE)
    concat = calls[-1]["made"].concat_latents
    assert torch.equal(concat[0, :, 1], network.encode(clip.images[None])[0, :, 1]) and not concat[0, :, 2].any()
    assert (calls[-1]["points"][..., 2] > 0).all()
    clip.frames[2] = 0
    clip.cameras.world_to_camera[2, 0, 3] = 7.0
    assert torch.equal(generate(network, clip, 1), generated)  # the last frame and its camera are not looked at
    clip.frames[1] = 255 - clip.frames[1]
    assert not torch.equal(generate(network, clip, 1), generated)


def test_generation_with_the_last_frame_is_as_before(network: ReconXDiffusion) -> None:
    clip = two_sided()
    views, points = (
        clip.images[[0, -1]][None],
        relative_to_first(clip.cloud.points[None], clip.cameras.world_to_camera[:1]),
    )
    view_generator = SamplingPipeline(
        network, SamplingConfig(num_inference_steps=2, guidance_scale=2.0, structure_guidance_scale=3.0)
    )
    arguments = views, torch.tensor([clip.fps]), FRAMES, points, ["clip"], [""]
    plain = view_generator.generate_views(*arguments, torch.Generator().manual_seed(3))
    assert torch.equal(generate(network, clip, None), plain[0])
    given = view_generator.generate_views(
        *arguments, torch.Generator().manual_seed(3), end_condition_frame=torch.tensor([FRAMES - 1])
    )
    assert torch.equal(given, plain)


@pytest.mark.parametrize("second", [0, 3, -1])
def test_frames_that_cannot_be_the_second_are_refused(network: ReconXDiffusion, second: int) -> None:
    with pytest.raises(ConfigurationError, match="frames 1 to 2"):
        generate(network, two_sided(), second)
    views = torch.rand(1, 2, 3, 8, 8)
    with pytest.raises(ConfigurationError, match="frames 1 to 2"):
        SamplingPipeline(network).generate_views(
            views,
            torch.ones(1),
            FRAMES,
            torch.rand(1, 32, 3),
            ["clip"],
            [""],
            end_condition_frame=torch.tensor([second]),
        )


def test_views_that_see_too_few_points_say_so(network: ReconXDiffusion) -> None:
    clip = two_sided()
    clip.cameras.world_to_camera[:-1, 2, 3] = -100.0
    with pytest.raises(BadSceneError, match="two-sided: frames 0 and 1 see fewer than 5 points"):
        generate(network, clip, 1)
