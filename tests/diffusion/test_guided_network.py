"""A network that is guided by renders: where it starts from, what it is told, and what of it is kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reconx_pl.diffusion.autoencoder import PixelUnshuffleAutoencoder
from reconx_pl.diffusion.conditioning.conditions import Conditions
from reconx_pl.diffusion.conditioning.dropout import DropoutConfig, Dropped
from reconx_pl.diffusion.conditioning.image_tokens import SmallImageConfig, SmallImageTokens
from reconx_pl.diffusion.conditioning.render_config import RenderConfig
from reconx_pl.diffusion.conditioning.structure import StructureEncoderConfig
from reconx_pl.diffusion.conditioning.text_tokens import LearnedTextTokens
from reconx_pl.diffusion.config import UNetConfig
from reconx_pl.diffusion.model import ReconXDiffusion, RecordedDraws
from reconx_pl.diffusion.sampling.schedule import ScheduleConfig
from reconx_pl.diffusion.weights.building import build_network, network_config
from reconx_pl.diffusion.weights.load import load_network
from reconx_pl.errors import BadWeightsError, ConfigurationError
from reconx_pl.types import ClipBatch, ClipRenders

FRAMES, WIDTH, SIDE, FACTOR, CHANNELS = 3, 16, 8, 2, 12
STRUCTURE = StructureEncoderConfig(points=32, tokens=5, width=WIDTH)
APPEND = RenderConfig(sources=("depth", "splats"), channels="append", holes="masked")
RESIDUAL = replace(APPEND, residual=True)
SAMPLE = ScheduleConfig(prediction="sample")


def built(
    render: RenderConfig | None = None,
    structure: StructureEncoderConfig | None = None,
    schedule: ScheduleConfig | None = None,
    random: bool = True,
    **options: Any,
) -> ReconXDiffusion:
    """A small network; ``random`` moves all its weights away from where they start."""
    torch.manual_seed(0)
    more = 0 if render is None else render.extra_channels(CHANNELS, FACTOR)
    sizes = {
        "in_channels": 2 * CHANNELS + more,
        "out_channels": CHANNELS,
        "model_channels": 64,
        "channel_mult": (1, 1),
        "num_res_blocks": 1,
        "attention_strides": (1,),
        "num_head_channels": 16,
        "context_dim": WIDTH,
        "structure_guidance": structure is not None,
    }
    network = ReconXDiffusion(
        UNetConfig(**sizes | options.pop("unet", {})),
        PixelUnshuffleAutoencoder(FACTOR),
        SmallImageTokens(SmallImageConfig(frames=FRAMES, width=WIDTH, image_size=32, channels=(8, 8, 8, 8))),
        LearnedTextTokens(4, WIDTH),
        structure,
        schedule,
        render=render,
        **options,
    )
    if random:
        randomise(network)
    return network.eval()


@torch.no_grad()
def randomise(network: ReconXDiffusion) -> None:
    draw = torch.Generator().manual_seed(1)
    for parameter in network.unet.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))


def renders_of(batch: int, count: int, seed: int = 3) -> ClipRenders:
    draw = torch.Generator().manual_seed(seed)
    color = torch.rand(batch, count, FRAMES, 3, SIDE, SIDE, generator=draw)
    return ClipRenders(color, (torch.rand(batch, count, FRAMES, SIDE, SIDE, generator=draw) > 0.1).float())


def views_of(batch: int) -> Tensor:
    return torch.rand(batch, 2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(4))


def points_of(batch: int) -> Tensor:
    return torch.randn(batch, 32, 3, generator=torch.Generator().manual_seed(5))


def conditions(network: ReconXDiffusion, batch: int, **options: Any) -> Conditions:
    """With renders, where the network is guided by them."""
    views = views_of(batch)
    latents = network.encode(views)
    if network.render is not None and "renders" not in options:
        rendered = renders_of(batch, len(network.render.sources))
        options["renders"] = network.render_latents(rendered, views)
    points = None if network.structure_encoder is None else points_of(batch)
    fps = torch.full((batch,), 8.0)
    return network.conditions(views[:, 0], latents[:, :, 0], latents[:, :, 1], fps, FRAMES, points, **options)


def noisy(batch: int) -> tuple[Tensor, Tensor]:
    shape = (batch, CHANNELS, FRAMES, SIDE // FACTOR, SIDE // FACTOR)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)), torch.tensor([5, 500, 999])[:batch]


def same(first: Conditions, second: Conditions) -> bool:
    names = ("concat_latents", "more_latents", "base_latents", "text_tokens", "image_tokens")
    pairs = [(getattr(first, name), getattr(second, name)) for name in names]
    return all(one is other or torch.equal(one, other) for one, other in pairs)


# --- where it starts from


def test_further_channels_start_at_zero_and_are_all_that_is_new() -> None:
    network, plain = built(APPEND, random=False), built(random=False)
    weight = network.unet.first_conv.weight.detach()
    assert weight.shape[1] == 2 * CHANNELS + 2 * (CHANNELS + FACTOR**2)
    assert float(weight[:, 2 * CHANNELS :].abs().sum()) == 0 < float(weight[:, : 2 * CHANNELS].abs().sum())
    assert network.state_dict().keys() == plain.state_dict().keys()
    assert [n for n, v in network.state_dict().items() if v.shape != plain.state_dict()[n].shape] == [
        "unet.input_blocks.0.0.weight"
    ]
    assert {n: v.shape for n, v in built(RenderConfig()).state_dict().items()} == {
        n: v.shape for n, v in plain.state_dict().items()
    }


@torch.no_grad()
def test_weights_without_those_channels_predict_what_they_did(tmp_path: Path) -> None:
    plain = built(structure=STRUCTURE)
    plain.save_pretrained(tmp_path)
    network = built(APPEND, STRUCTURE)
    load_network(network, tmp_path / "model.safetensors", with_frozen_encoders=True)
    x, t = noisy(3)
    given = conditions(network, 3)
    assert given.more_latents is not None and float(given.more_latents.abs().mean()) > 0.5
    # another processor may add up the zeros in another order
    torch.testing.assert_close(network(x, t, given), plain(x, t, conditions(plain, 3)), atol=2e-6, rtol=0)
    network.save_pretrained(tmp_path / "guided")
    again = ReconXDiffusion.from_pretrained(tmp_path / "guided")
    assert (again.guidance, again.render) == ("both", APPEND)
    assert torch.equal(again(x, t, given), network(x, t, given))


@torch.no_grad()
def test_trained_channels_are_kept(tmp_path: Path) -> None:
    network = built(APPEND)
    network.save_pretrained(tmp_path)
    again = ReconXDiffusion.from_pretrained(tmp_path)
    assert (again.guidance, again.render) == ("render", APPEND)
    x, t = noisy(2)
    given = conditions(network, 2)
    assert torch.equal(again(x, t, given), network(x, t, given))
    without = replace(given, more_latents=torch.zeros_like(given.more_latents))  # type: ignore[arg-type]
    assert not torch.allclose(network(x, t, given), network(x, t, without))


def test_weights_of_another_number_of_sources_do_not_fit(tmp_path: Path) -> None:
    built(APPEND).save_pretrained(tmp_path)
    with pytest.raises(BadWeightsError, match="input_blocks.0.0.weight"):
        load_network(built(replace(APPEND, sources=("depth",))), tmp_path / "model.safetensors")
    with pytest.raises(BadWeightsError, match="input_blocks.0.0.weight"):
        load_network(built(), tmp_path / "model.safetensors")


@torch.no_grad()
def test_an_untrained_residual_network_predicts_its_base() -> None:
    network = built(RESIDUAL, schedule=SAMPLE, random=False)
    x, t = noisy(3)
    given = conditions(network, 3)
    assert given.base_latents is not None
    expected = network.schedule.scaled(given.base_latents, t)
    assert torch.equal(network(x, t, given), expected) and torch.equal(network.bind(given)(x, t), expected)
    assert not torch.equal(expected[1], given.base_latents[1])  # it is scaled as the clean latent is
    ends = network.encode(views_of(3))
    torch.testing.assert_close(given.base_latents[:, :, 0], ends[:, :, 0])
    torch.testing.assert_close(given.base_latents[:, :, -1], ends[:, :, 1])


# --- what it is told


KINDS: dict[str, Callable[[], ReconXDiffusion]] = {
    "replace": lambda: built(RenderConfig()),
    "append": lambda: built(APPEND),
    "residual": lambda: built(RESIDUAL, STRUCTURE, SAMPLE),
    "both": lambda: built(RenderConfig(holes="masked"), STRUCTURE),
    "each frame": lambda: built(APPEND, STRUCTURE),
}


@torch.no_grad()
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_bound_equals_forward_and_renders_act(make: Callable[[], ReconXDiffusion]) -> None:
    network = make()
    given, blank = conditions(network, 3), conditions(network, 3, renders=None)
    x, t = noisy(3)
    torch.testing.assert_close(network.bind(given)(x, t), network(x, t, given))
    assert not torch.allclose(network(x, t, given), network(x, t, blank), atol=1e-3)


def test_photographs_stand_at_their_places_in_every_form() -> None:
    ends = built().encode(views_of(2))
    for render in (RenderConfig(), APPEND):
        concat = conditions(built(render), 2).concat_latents
        assert torch.equal(concat[:, :, 0], ends[:, :, 0]) and torch.equal(concat[:, :, -1], ends[:, :, 1])
    assert float(concat[:, :, 1].abs().sum()) == 0  # appended renders leave what is between them as it was


@pytest.mark.parametrize("make", [KINDS["replace"], KINDS["append"], KINDS["residual"]])
def test_a_sample_that_has_lost_its_renders_is_told_what_it_was_without_them(
    make: Callable[[], ReconXDiffusion],
) -> None:
    network = make()
    keep = torch.zeros(3, dtype=torch.bool)
    dropped = Dropped(keep, keep, keep, torch.tensor([True, False, True]))
    found, whole = conditions(network, 3, dropped=dropped), conditions(network, 3, dropped=Dropped(keep, keep, keep))
    blank = conditions(network, 3, dropped=Dropped(keep, keep, keep), renders=None)
    assert same(found.select(torch.tensor([1])), whole.select(torch.tensor([1])))
    lost, today = found.select(torch.tensor([0, 2])), blank.select(torch.tensor([0, 2]))
    assert torch.equal(lost.concat_latents, today.concat_latents)
    assert float(today.concat_latents[:, :, 1].abs().sum()) == 0
    if network.render is not None and network.render.channels == "append":
        assert lost.more_latents is not None and float(lost.more_latents.abs().sum()) == 0
        assert torch.equal(lost.more_latents, today.more_latents)  # type: ignore[arg-type]
    x, t = noisy(2)
    torch.testing.assert_close(network(x, t, lost), network(x, t, today))  # a base of zeros is none


def test_guidance_never_acts_on_renders() -> None:
    network = built(RESIDUAL, STRUCTURE, SAMPLE)
    views, fps = views_of(2), torch.full((2,), 8.0)
    sets = network.condition_sets(views, fps, FRAMES, points_of(2), renders=renders_of(2, 2))
    for name in ("concat_latents", "more_latents", "base_latents"):
        full = getattr(sets.full, name)
        assert torch.equal(full, getattr(sets.view, name)) and torch.equal(full, getattr(sets.null, name))
    assert sets.view.structure_tokens is None and sets.full.structure_tokens is not None
    assert not torch.equal(sets.null.image_tokens, sets.full.image_tokens)


@pytest.mark.parametrize("holes", ["black", "masked", "filled"])
def test_condition_latents_of_sampling_are_those_of_training(holes: Any) -> None:
    network = built(RenderConfig(holes=holes))
    views, fps, place = views_of(2), torch.full((2,), 8.0), torch.tensor([1, 2])
    renders = renders_of(2, 1)
    sets = network.condition_sets(views, fps, FRAMES, renders=renders, end_condition_frame=place)
    rendered = network.render_latents(renders, views, end_condition_frame=place)
    ends = network.encode(views)
    given = network.conditions(
        views[:, 0], ends[:, :, 0], ends[:, :, 1], fps, FRAMES, end_condition_frame=place, renders=rendered
    )
    assert torch.equal(sets.full.concat_latents, given.concat_latents)
    for clip, frame in enumerate(place.tolist()):
        assert torch.equal(given.concat_latents[clip, :, frame], ends[clip, :, 1])
    assert not torch.equal(given.concat_latents[0, :, 2], ends[0, :, 1])


# --- what contradicts itself


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "too few input channels": (
        {"render": APPEND, "unet": {"in_channels": 24}},
        r"needs in_channels=56 \(noise and condition latents, and 32 of renders\) .*; it has 24 and 12",
    ),
    "too many": (
        {"render": RenderConfig(), "unet": {"in_channels": 56}},
        r"needs in_channels=24 \(noise and condition latents\)",
    ),
    "residual to noise": ({"render": RESIDUAL}, "set schedule.prediction to sample, or render.residual to false"),
    "render without being guided by it": ({"render": APPEND, "guidance": "none"}, "set `render` to null"),
    "structure that is not there": ({"guidance": "both", "render": APPEND}, "give `structure`"),
    "structure too much": ({"guidance": "render", "structure": STRUCTURE}, "set `structure` to null"),
    "structure tokens nobody sees": (
        {"guidance": "both", "structure": STRUCTURE, "unet": {"structure_guidance": False}},
        "set both or neither",
    ),
}


@pytest.mark.parametrize(("options", "words"), REFUSED.values(), ids=REFUSED)
def test_networks_that_contradict_themselves(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        built(**options)


def test_renders_for_a_network_that_is_not_guided_by_them() -> None:
    with pytest.raises(ConfigurationError, match="guidance is 'structure': it takes no renders"):
        built(structure=STRUCTURE).render_latents(renders_of(1, 1), views_of(1))


def test_guidance_and_render_are_part_of_the_configuration() -> None:
    rich = replace(RESIDUAL, mode="points", shrink=2, radius=0.02, views="pooled", depth_noise=0.1)
    for network, guidance in (
        (built(rich, schedule=SAMPLE), "render"),
        (built(APPEND, STRUCTURE), "both"),
        (built(structure=STRUCTURE), "structure"),
        (built(), "none"),
    ):
        config = network_config(network)
        again = build_network(copy.deepcopy(config), "a test")
        assert (again.guidance, again.render) == (guidance, network.render)
        assert network_config(again) == config
        del config["init_args"]["guidance"]  # as it was before there was a choice
        assert build_network(config, "a test").guidance == guidance


def test_default_renders_where_guidance_asks_for_them() -> None:
    assert built(guidance="render").render == RenderConfig()


# --- the objective


def batch_of(clips: int, renders: ClipRenders | None) -> ClipBatch:
    draw = torch.Generator().manual_seed(6)
    batch = ClipBatch(
        key=[f"clip-{number}" for number in range(clips)],
        caption=[""] * clips,
        frames=torch.randint(0, 256, (clips, FRAMES, 3, SIDE, SIDE), dtype=torch.uint8, generator=draw),
        world_to_camera=torch.eye(4).repeat(clips, FRAMES, 1, 1),
        intrinsics=torch.eye(3).repeat(clips, FRAMES, 1, 1),
        fps=torch.full((clips,), 8.0),
        points=points_of(clips),
    )
    if renders is not None:
        batch["renders"] = renders
    return batch


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def test_the_loss_is_that_of_conditions_with_renders() -> None:
    network, renders = built(APPEND, STRUCTURE), renders_of(2, 2)
    batch = batch_of(2, renders)
    frames = batch["frames"].float() / 255
    latents = network.encode(frames)
    given = network.conditions(
        frames[:, 0],
        latents[:, :, 0],
        latents[:, :, -1],
        batch["fps"],
        FRAMES,
        batch["points"],
        batch["caption"],
        renders=network.render_latents(renders, frames[:, [0, -1]]),
    )
    t, noise = torch.tensor([300, 700]), torch.randn(latents.shape, generator=generator())
    found = network.loss(batch, None, drop=False, recorded=RecordedDraws(t=t, noise=noise))
    prediction = network(network.schedule.add_noise(latents, noise, t), t, given)
    expected = (prediction - network.schedule.target(latents, noise, t)).square().mean()
    torch.testing.assert_close(found.loss, expected)
    other = network.loss(
        batch_of(2, renders_of(2, 2, seed=9)), None, drop=False, recorded=RecordedDraws(t=t, noise=noise)
    )
    assert not torch.allclose(found.loss, other.loss)


@torch.no_grad()
def test_dropping_all_renders_is_training_without_them() -> None:
    network, plain = built(RenderConfig(), dropout=DropoutConfig(0.0, 0.0, render=1.0)), built()
    recorded = RecordedDraws(t=torch.tensor([300, 700]))
    batch = batch_of(2, renders_of(2, 1))
    keep = torch.zeros(2, dtype=torch.bool)
    noise = torch.randn(2, CHANNELS, FRAMES, SIDE // FACTOR, SIDE // FACTOR, generator=generator())
    lost = network.loss(batch, generator(), recorded=replace(recorded, noise=noise)).loss
    without = plain.loss(batch, None, recorded=replace(recorded, noise=noise, dropped=Dropped(keep, keep, keep))).loss
    assert torch.equal(lost, without)
    kept = network.loss(batch, None, drop=False, recorded=replace(recorded, noise=noise)).loss
    assert not torch.equal(lost, kept)


def test_draws_of_a_step_are_those_of_a_network_without_renders() -> None:
    network, plain = built(RenderConfig()), built()
    guided, bare = (net.loss(batch_of(3, renders_of(3, 1)), generator()) for net in (network, plain))
    assert torch.equal(guided.t, bare.t)
    with_dropout = built(RenderConfig(), dropout=DropoutConfig(render=0.5))
    assert not torch.equal(with_dropout.loss(batch_of(3, renders_of(3, 1)), generator()).t, bare.t)


def test_a_batch_without_renders() -> None:
    with pytest.raises(
        ConfigurationError, match="guidance 'render' needs renders of clips clip-0, clip-1 in the batch"
    ):
        built(RenderConfig()).loss(batch_of(2, None), generator())
