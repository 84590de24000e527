"""A checkpoint as the base models are distributed: every tensor finds its place, or the file is refused."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from released_checkpoints import deepspeed, released, schedule_buffers, tiny
from safetensors.torch import save_file
from torch import Tensor

from reconx_pl.diffusion.autoencoder import KLAutoencoder
from reconx_pl.diffusion.conditioning.image_tokens import ClipVisionEncoder
from reconx_pl.diffusion.conditioning.text_tokens import ClipTextTokens
from reconx_pl.diffusion.sampling.schedule import ScheduleConfig
from reconx_pl.diffusion.weights import load_network
from reconx_pl.diffusion.weights.released import SCHEDULE_BUFFERS, UNUSED, split_released
from reconx_pl.errors import BadWeightsError
from reconx_pl.training.checkpointing.network_weights import own_weights, save_network


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return released(tiny(4, seed=1))


def write(state: dict[str, Tensor], path: Path) -> Path:
    torch.save({"state_dict": state, "global_step": 1}, path)
    return path


def test_every_tensor_has_its_place(state: dict[str, Tensor]) -> None:
    source = tiny(4, seed=1, structure=False)
    split = split_released(state, "model.ckpt")
    assert split.schedule.keys() == SCHEDULE_BUFFERS and split.unused.keys() == UNUSED
    assert split.tensors.keys() == source.state_dict().keys()
    assert len(split.tensors) + len(split.schedule) + len(split.unused) == len(state)
    for name, expected in tiny(4, seed=1).state_dict().items():
        assert name not in split.tensors or torch.equal(split.tensors[name], expected), name


@pytest.mark.parametrize("form", ["torch", "deepspeed", "safetensors"])
def test_every_form_is_loaded_and_encoders_are_taken_on_demand(
    form: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / ("model.safetensors" if form == "safetensors" else "model.ckpt")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if form == "torch" else deepspeed(state), path)
    source, target = tiny(4, seed=1), tiny(4, seed=2)
    born = {name: tensor.clone() for name, tensor in own_weights(target).items() if "structure" in name}
    load_network(target, path)
    expected, loaded = own_weights(source), own_weights(target)
    for name, tensor in loaded.items():
        assert torch.equal(tensor, born[name] if name in born else expected[name]), name
    assert len(born) > 10 and not any("vae" in name or ".visual." in name for name in loaded)
    assert not torch.equal(
        source.image_tokens.encoder.visual.conv1.weight, target.image_tokens.encoder.visual.conv1.weight
    )
    load_network(target, path, with_frozen_encoders=True)
    for name, tensor in source.state_dict().items():
        assert name in born or torch.equal(target.state_dict()[name], tensor), name
    # each encoder reads its own part of the same file
    vae = KLAutoencoder(source.autoencoder.config, path)
    assert torch.equal(vae.vae.decoder.conv_in.weight, source.autoencoder.vae.decoder.conv_in.weight)
    image = ClipVisionEncoder(source.image_tokens.encoder.config, path)
    assert torch.equal(image.visual.conv1.weight, source.image_tokens.encoder.visual.conv1.weight)
    text = ClipTextTokens(source.text_tokens.config, path)
    assert torch.equal(text.text.ln_final.weight, source.text_tokens.text.ln_final.weight)


def test_names_in_the_form_of_deepspeed_all_have_its_prefix(state: dict[str, Tensor], tmp_path: Path) -> None:
    content = deepspeed(state)
    content["module"]["stray"] = torch.zeros(1)  # type: ignore[index]
    torch.save(content, tmp_path / "model.ckpt")
    with pytest.raises(BadWeightsError, match=r"_forward_module\..*stray"):
        load_network(tiny(4, seed=2), tmp_path / "model.ckpt")


@pytest.mark.parametrize(("mode", "second"), [("interpolate", 3 / 7), ("repeat", 0.0)])
def test_queries_for_twice_the_frames(mode: str, second: float, state: dict[str, Tensor], tmp_path: Path) -> None:
    source, target = tiny(4, seed=1), tiny(8, seed=2)
    load_network(target, write(state, tmp_path / "model.ckpt"), mode)  # type: ignore[arg-type]
    before = source.image_tokens.resampler.latents[0].unflatten(0, (4, 16))
    after = target.image_tokens.resampler.latents[0].unflatten(0, (8, 16))
    torch.testing.assert_close(after[[0, -1]], before[[0, -1]])  # the ends stay
    torch.testing.assert_close(after[1], before[0] + (before[1] - before[0]) * second)


def test_512_queries_of_32_frames_come_from_256_of_16(tmp_path: Path) -> None:
    source, target = tiny(16, seed=1), tiny(32, seed=2)
    load_network(target, write(released(source), tmp_path / "model.ckpt"))
    latents = target.image_tokens.resampler.latents
    assert latents.shape == (1, 512, 32)
    before, after = (net.image_tokens.resampler.latents[0].unflatten(0, (-1, 16)) for net in (source, target))
    position = 20 * 15 / 31  # of frame 20 of 32 among 16
    torch.testing.assert_close(after[20], torch.lerp(before[9], before[10], position - 9))
    torch.testing.assert_close(after[31], before[15])


def drop(*prefixes: str) -> Callable[[dict[str, Tensor]], None]:
    def edit(state: dict[str, Tensor]) -> None:
        for name in [name for name in state if name.startswith(prefixes)]:
            del state[name]

    return edit


def add(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda state: state.update({name: torch.zeros(1)})


def image_model(state: dict[str, Tensor]) -> None:
    for name in [name for name in state if "temopral_conv" in name]:
        del state[name]
    first = "model.diffusion_model.input_blocks.0.0.weight"
    state[first] = state[first][:, :4].clone()


def small_model(state: dict[str, Tensor]) -> None:
    for name in [name for name in state if name.endswith("attn2.to_k_ip.weight")]:
        state[name.replace("to_k_ip.weight", "alpha")] = torch.zeros(())
    del state["scale_arr"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop("image_proj_model."), r"missing: image_tokens\.resampler\."),
        (drop("model.diffusion_model.out.2.bias"), r"1 missing: unet\.out\.2\.bias"),
        (drop("first_stage_model.decoder.conv_in.bias"), r"1 missing: autoencoder\.vae\.decoder\.conv_in\.bias"),
        (drop("betas", "posterior_variance"), r"not complete, missing: betas, posterior_variance"),
        (drop("scale_arr"), r"no scale_arr.*256.*rescale_end"),
        (add("model_ema.decay"), r"1 unexpected keys.*model_ema\.decay"),
        (add("embedder.model.novel"), r"1 unexpected keys.*embedder\.model\.novel"),
        (add("cond_stage_model.model.novel"), r"1 unexpected: text_tokens\.text\.novel"),
        (add("model.diffusion_model.out.2.bias"), r"1 of another shape: unet\.out\.2\.bias: file \(1,\), model \(4,\)"),
        (image_model, r"Stable Diffusion.*without temporal convolutions, 4 input channels.*weights fetch"),
        (small_model, r"4 unexpected gates.*DynamiCrafter 256"),
    ],
)
def test_what_does_not_fit_is_refused(
    edit: Callable[[dict[str, Tensor]], None], message: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    target, edited = tiny(4, seed=2), dict(state)
    edit(edited)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(BadWeightsError, match=r"model\.ckpt.*" + message):
        load_network(target, write(edited, tmp_path / "model.ckpt"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


class _Foreign:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("touched"),))


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("kind", ["empty", "truncated", "pickle", "text"])
def test_unreadable_files_are_named(
    kind: str, suffix: str, state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"model{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    whole = path.read_bytes()
    if kind == "pickle" and suffix == ".ckpt":
        torch.save({"state_dict": state, "callbacks": _Foreign()}, path)
    else:
        contents = {"empty": b"", "truncated": whole[: len(whole) // 2], "text": b"<html>"}
        path.write_bytes(contents.get(kind, pickle.dumps(_Foreign())))
    with pytest.raises(BadWeightsError, match=rf"model\{suffix}") as error:
        load_network(tiny(4, seed=2), path)
    assert ("unpickles" if kind == "pickle" and suffix == ".ckpt" else "fetch it again") in str(error.value)
    assert not (tmp_path / "touched").exists()


def test_a_schedule_from_before_the_rescale_is_recognised(
    state: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = schedule_buffers(ScheduleConfig(zero_terminal_snr=False))
    path = write({**state, **before}, tmp_path / "model.ckpt")
    target = tiny(4, seed=2)
    with caplog.at_level(logging.WARNING):
        load_network(target, path)
    (said,) = [record.getMessage() for record in caplog.records]
    assert (
        "known and harmless" in said and "alphas_cumprod" in said and "scale_arr" not in said and "ours is used" in said
    )
    assert target.schedule.alphas_cumprod[-1] == 0


def test_another_schedule_is_reported_and_the_same_one_is_not(
    state: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        load_network(tiny(4, seed=2), write(state, tmp_path / "same.ckpt"))
        assert not caplog.records
        betas = state["betas"].clone()
        betas[500] += 0.25
        load_network(tiny(4, seed=2), write({**state, "betas": betas}, tmp_path / "other.ckpt"))
        load_network(
            tiny(4, seed=2),
            write({k: v for k, v in state.items() if k not in SCHEDULE_BUFFERS}, tmp_path / "none.ckpt"),
        )
    other, none = (record.getMessage() for record in caplog.records)
    assert "other.ckpt" in other and "(betas; largest difference 0.25)" in other and "harmless" not in other
    assert "none.ckpt stores no noise schedule" in none


def test_the_rescale_of_another_release_is_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = write(state, tmp_path / "512.ckpt")
    for schedule in (ScheduleConfig(rescale_end=0.3), ScheduleConfig(rescale_end=None)):
        with pytest.raises(BadWeightsError, match=r"512\.ckpt: scale_arr.*ends at 0\.7"):
            load_network(tiny(4, seed=2, schedule=schedule), path)


def test_a_encoder_that_the_file_lacks_keeps_its_own(state: dict[str, Tensor], tmp_path: Path) -> None:
    pruned = {name: tensor for name, tensor in state.items() if not name.startswith("first_stage_model.")}
    path = write(pruned, tmp_path / "model.ckpt")
    load_network(tiny(4, seed=2), path)
    with pytest.raises(BadWeightsError, match="missing: autoencoder"):
        load_network(tiny(4, seed=2), path, with_frozen_encoders=True)


def test_own_weights_round_trip_without_the_encoders(tmp_path: Path) -> None:
    source, target = tiny(4, seed=1), tiny(4, seed=2)
    save_network(source, tmp_path / "weights.safetensors")
    load_network(target, tmp_path / "weights.safetensors")
    assert all(torch.equal(tensor, own_weights(target)[name]) for name, tensor in own_weights(source).items())
    assert not torch.equal(
        source.image_tokens.encoder.visual.conv1.weight, target.image_tokens.encoder.visual.conv1.weight
    )


def test_more_frames_than_queries_is_an_error() -> None:
    network = tiny(4, seed=1).eval()
    views = torch.rand(1, 2, 3, 32, 32)
    with pytest.raises(ValueError, match=r"asked for 8 frames.*queries for 4"):
        network.condition_sets(views, torch.tensor([8.0]), 8)
    assert network.condition_sets(views, torch.tensor([8.0]), 4).full.image_tokens.shape == (1, 4, 16, 32)
