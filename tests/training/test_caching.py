"""Training from caches: the loss of the frames without running a frozen encoder; the command that makes the caches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from frozen_encoders import build_network, write_config
from torch import Tensor

from reconx_pl.cli.main import main
from reconx_pl.data.procedural import write_procedural
from reconx_pl.data.shards.manifest import Manifest
from reconx_pl.data.shards.stream import ClipPass, read_clips
from reconx_pl.diffusion.autoencoder import PixelUnshuffleAutoencoder
from reconx_pl.diffusion.conditioning.conditions import Conditions
from reconx_pl.diffusion.conditioning.dropout import DropoutConfig, Dropped
from reconx_pl.diffusion.conditioning.image_tokens import SmallImageConfig, SmallImageTokens
from reconx_pl.diffusion.conditioning.text_tokens import LearnedTextTokens
from reconx_pl.diffusion.config import UNetConfig
from reconx_pl.diffusion.model import ReconXDiffusion, RecordedDraws
from reconx_pl.errors import ConfigurationError, MissingWeightsError
from reconx_pl.training.precompute import cache_shards, encoder_precomputers, frozen_parts
from reconx_pl.types import ClipBatch

CLIPS = 4


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    write_procedural(folder, count=CLIPS, first_seed=0, frames=4, size=(32, 32), points=64, clips_per_shard=2)
    return folder


@pytest.fixture(scope="module")
def frozen_encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoders")


@pytest.fixture(scope="module")
def cached(plain: Path, frozen_encoders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "cached"
    cache_shards(plain, folder, write_config(frozen_encoders), device="cpu")
    return folder


@pytest.fixture
def network(frozen_encoders: Path, cached: Path) -> ReconXDiffusion:
    return build_network(frozen_encoders)


def batch_of(folder: Path, network: ReconXDiffusion | None = None) -> ClipBatch:
    """All clips, from caches where a network is given."""
    return next(iter(ClipPass(folder, CLIPS, points=64, cached=network and network.cached_inputs())))


def break_encoders(network: ReconXDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> Tensor:
        raise AssertionError("a frozen encoder ran")

    for module in (
        network.autoencoder.vae.encoder,
        network.image_tokens.encoder.visual.conv1,
        network.text_tokens.text,
    ):
        for part in module.modules():
            monkeypatch.setattr(part, "forward", broken)


def all_kept_and_dropped() -> RecordedDraws:
    """The four combinations of text and image."""
    text, image = torch.tensor([False, True, False, True]), torch.tensor([False, False, True, True])
    return RecordedDraws(dropped=Dropped(text, image, torch.zeros(4, dtype=torch.bool)))


def test_the_loss_of_caches_is_the_loss_of_frames_and_runs_no_encoder(
    plain: Path, cached: Path, network: ReconXDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, caches = batch_of(plain), batch_of(cached, network)
    assert "frames" not in caches and caches["key"] == frames["key"]

    told: list[Conditions] = []
    make = network.conditions
    monkeypatch.setattr(network, "conditions", lambda *args: told.append(make(*args)) or told[-1])

    def step(batch: ClipBatch) -> tuple[Any, dict[str, Tensor]]:
        network.zero_grad()
        out = network.loss(batch, torch.Generator().manual_seed(5), structure=False, recorded=all_kept_and_dropped())
        out.loss.backward()
        return out, {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}

    expected, gradients = step(frames)  # also lets the text encoder see the captions for the first time
    network.image_tokens.encoder.null()
    break_encoders(network, monkeypatch)
    with pytest.raises(AssertionError, match="a frozen encoder ran"):
        step(frames)
    found, own = step(caches)
    assert torch.equal(found.t, expected.t)
    one, other = told[0], told[-1]
    assert torch.equal(one.text_tokens, other.text_tokens) and torch.equal(one.fps, other.fps)
    for name in ("image_tokens", "concat_latents"):
        expected_values = getattr(one, name)
        scale = float(expected_values.detach().abs().max())
        torch.testing.assert_close(getattr(other, name), expected_values, atol=2e-3 * scale, rtol=0)
    assert torch.equal(other.image_tokens[2], other.image_tokens[3])  # both have lost their image
    torch.testing.assert_close(found.per_sample, expected.per_sample, rtol=2e-3, atol=0)
    assert own.keys() == gradients.keys() and any(name.startswith("image_tokens.resampler") for name in own)
    whole, off = (torch.cat([g[n].flatten() for n in own]) for g in (gradients, own))
    assert (whole - off).norm() < 5e-3 * whole.norm()


def test_caches_hold_the_latent_of_any_frame(plain: Path, cached: Path, network: ReconXDiffusion) -> None:
    """Frames and caches train the same extrapolation."""
    second, losses = torch.tensor([1, 2, 3, 1]), []
    for batch in (batch_of(plain), batch_of(cached, network)):
        out = network.loss(batch, torch.Generator().manual_seed(5), structure=False, end_condition_frame=second)
        losses.append(out.per_sample.detach())
    torch.testing.assert_close(losses[1], losses[0], rtol=2e-3, atol=0)
    last = network.loss(batch, torch.Generator().manual_seed(5), structure=False).per_sample
    assert torch.equal(last != losses[1], second != 3)  # the last frame is what it always was


def test_the_same_numbers_are_drawn(plain: Path, cached: Path, network: ReconXDiffusion) -> None:
    states = []
    for batch in (batch_of(plain), batch_of(cached, network)):
        generator = torch.Generator().manual_seed(5)
        network.loss(batch, generator, structure=False)
        states.append(generator.get_state())
    assert torch.equal(*states)


def test_every_visit_draws_a_posterior_of_its_own(
    plain: Path, cached: Path, network: ReconXDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(
        "reconx_pl.diffusion.batch_loss.diffusion_loss", lambda model, schedule, x0, generator, **given: seen.append(x0)
    )
    for batch in (batch_of(plain), batch_of(cached, network)):
        for seed in (1, 2):
            network.loss(batch, torch.Generator().manual_seed(seed), structure=False, drop=False)
    first, second, first_cached, second_cached = seen
    assert (first - second).abs().max() > 0.05
    torch.testing.assert_close(first_cached, first, atol=2e-3 * float(first.abs().max()), rtol=0)
    torch.testing.assert_close(second_cached, second, atol=2e-3 * float(second.abs().max()), rtol=0)


def test_caches_of_other_weights_are_refused(cached: Path, network: ReconXDiffusion, tmp_path: Path) -> None:
    other = build_network(tmp_path / "other", seed=7)
    with pytest.raises(ConfigurationError) as caught:
        other.loss(batch_of(cached, network), torch.Generator(), structure=False)
    for part in (str(cached), *network.cached_inputs().names, *other.cached_inputs().names, "reconx cache"):
        assert part in str(caught.value)
    with pytest.raises(ConfigurationError, match="reconx cache"):
        batch_of(cached, other)


def test_generation_does_not_spoil_what_training_remembers(cached: Path, network: ReconXDiffusion, plain: Path) -> None:
    batch = batch_of(plain)
    with torch.inference_mode():
        network.condition_sets(batch["frames"][:, [0, -1]] / 255, batch["fps"], 4, captions=batch["caption"])
    out = network.loss(
        batch_of(cached, network), torch.Generator().manual_seed(0), structure=False, recorded=all_kept_and_dropped()
    )
    out.loss.backward()


def text_of(network: ReconXDiffusion, captions: list[str] | None) -> Tensor:
    latent = torch.zeros(2, 4, 8, 8)
    conditions = network.conditions(torch.zeros(2, 3, 32, 32), latent, latent, torch.ones(2), 4, captions=captions)
    return conditions.text_tokens


def test_captions_of_clips_or_one_for_all(frozen_encoders: Path, cached: Path) -> None:
    own = build_network(frozen_encoders, caption="a walk")
    fixed = build_network(frozen_encoders, caption="a walk", captions="fixed")
    walk, sofa = own.text_tokens(["a walk"])[0], own.text_tokens(["a red sofa"])[0]
    assert (walk - sofa).abs().max() > 1e-3
    for captions, first in ((["a red sofa", ""], sofa), (["", ""], walk), (None, walk)):
        assert torch.equal(text_of(own, captions), torch.stack([first, walk]))
        assert torch.equal(text_of(fixed, captions), torch.stack([walk, walk]))
    assert torch.equal(text_of(build_network(frozen_encoders), None)[:1], own.text_tokens.null())  # by default ""
    with pytest.raises(ConfigurationError, match="'clip' or 'fixed'"):
        build_network(frozen_encoders, captions="none")


def test_learned_text_is_never_remembered() -> None:
    model = LearnedTextTokens(tokens=3, width=4)
    first = model(["a"]).detach().clone()
    with torch.no_grad():
        model.caption.add_(1)
    assert torch.equal(model(["a"]), first + 1) and model(["a"]).requires_grad


@pytest.mark.parametrize("frozen", ["autoencoder", "image_tokens"])
def test_one_frozen_encoder_is_enough(
    plain: Path, frozen_encoders: Path, cached: Path, tmp_path: Path, frozen: str
) -> None:
    autoencoder, image_tokens = frozen_parts(write_config(frozen_encoders))
    if frozen == "autoencoder":
        image_tokens = SmallImageTokens(
            SmallImageConfig(frames=4, width=32, image_size=32, resampler_width=32, heads=1)
        )
    else:
        autoencoder = PixelUnshuffleAutoencoder(4)
    channels = autoencoder.latent_channels
    unet = UNetConfig(
        in_channels=2 * channels, out_channels=channels, model_channels=32, channel_mult=(1,), num_res_blocks=1,
        attention_strides=(1,), num_head_channels=8, context_dim=32, structure_guidance=False,
    )  # fmt: skip
    network = ReconXDiffusion(unet, autoencoder, image_tokens, LearnedTextTokens(8, 32), dropout=DropoutConfig(0.3))
    torch.nn.init.normal_(network.unet.out[-1].weight, std=0.1)
    losses = []
    for batch in (batch_of(plain), batch_of(cached, network)):
        losses.append(network.loss(batch, torch.Generator().manual_seed(3), structure=False).per_sample)
    assert batch["frames"].shape[1] == (1 if frozen == "autoencoder" else 4)
    torch.testing.assert_close(losses[1], losses[0], rtol=2e-3, atol=0)


def test_a_network_without_frozen_encoders_has_nothing_to_cache() -> None:
    parts = PixelUnshuffleAutoencoder(8), SmallImageTokens(SmallImageConfig(image_size=32))
    with pytest.raises(ConfigurationError, match="nothing to cache"):
        encoder_precomputers(*parts, torch.device("cpu"))


def test_bf16_gives_other_numbers_under_the_same_name_and_says_so(
    plain: Path, frozen_encoders: Path, tmp_path: Path
) -> None:
    config = write_config(frozen_encoders)
    cache_shards(plain, tmp_path / "bf16", config, precision="bf16", device="cpu", rank=0, world_size=1)
    with pytest.raises(ConfigurationError, match="bf16"):
        cache_shards(plain, tmp_path / "bf16", config, precision="32", device="cpu")
    network = build_network(frozen_encoders)
    assert batch_of(tmp_path / "bf16", network)["caches"].keys() == set(network.cached_inputs().names)


def test_command(plain: Path, cached: Path, frozen_encoders: Path, tmp_path: Path) -> None:
    config = str(write_config(frozen_encoders))
    arguments = ["cache", str(plain), str(tmp_path / "out"), "--config", config, "--device", "cpu"]
    main([*arguments, "--rank", "1", "--world_size", "2"])
    assert not (tmp_path / "out" / "manifest.json").exists()
    main([*arguments, "--rank", "0", "--world_size", "2"])
    assert [s.sha256 for s in Manifest.load(tmp_path / "out").shards] == [
        s.sha256 for s in Manifest.load(cached).shards
    ]
    assert len(list(read_clips(tmp_path / "out"))) == CLIPS


def without_network(config: dict[str, Any]) -> None:
    del config["model"]["network"]


def unknown_class(config: dict[str, Any]) -> None:
    config["model"]["network"]["init_args"]["autoencoder"]["class_path"] = "reconx_pl.no.Such"


@pytest.mark.parametrize(("edit", "says"), [(without_network, "model.network"), (unknown_class, "autoencoder")])
def test_a_configuration_without_the_parts_is_refused(
    tmp_path: Path, edit: Callable[[dict[str, Any]], None], says: str
) -> None:
    path = write_config(tmp_path)
    config = yaml.safe_load(path.read_text())
    edit(config)
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigurationError, match=rf"config\.yaml.*{says}"):
        frozen_parts(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"absent\.yaml"):
        frozen_parts(tmp_path / "absent.yaml")
    path = write_config(tmp_path)
    (tmp_path / "vae.safetensors").unlink()
    with pytest.raises(MissingWeightsError, match=r"vae\.safetensors"):
        frozen_parts(path)
