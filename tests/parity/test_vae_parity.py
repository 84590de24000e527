"""The KL autoencoder against the reference, through the renaming of its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden_kits import Held, described, golden_kits, named_kit, read_kit, weights_file
from golden_networks import autoencoder_config
from safetensors.torch import save_file
from torch import Tensor

from reconx_pl.diffusion.autoencoder import KLAutoencoder, KLAutoencoderConfig, diffusers_names
from reconx_pl.errors import BadWeightsError

KITS = golden_kits("vae_*.json")
needs_kit = pytest.mark.skipif(not KITS, reason="needs the golden kits vae_*.json")
each_kit = pytest.mark.parametrize("path", KITS, ids=lambda path: path.stem)


def _config(path: Path) -> KLAutoencoderConfig:
    description = described(path)
    return autoencoder_config(description["ddconfig"], description["scale_factor"])


@needs_kit
@each_kit
@pytest.mark.parametrize("chunk", [1, 8])
def test_latents_and_reconstruction(path: Path, chunk: int) -> None:
    description, kit = read_kit(path)
    errors = description.get("max_abs_err_vs_float64", {})

    def near(ours: Tensor, theirs: Tensor, name: str) -> None:  # the kit's own error, else its README's 1e-4
        tolerance = 20 * errors[name] if name in errors else 1e-4 * float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)

    model = KLAutoencoder(_config(path), weights=weights_file(path), chunk=chunk)
    with Held(kit) as held:
        if held.has("io.image"):
            images = (kit["io.image"] + 1) / 2
            for _, expected in held.of(["io.moments"]):
                near(model.moments(images), expected, "moments")
            for _, expected in held.of(["io.z_mode"]):
                torch.testing.assert_close(model.encode(images), expected, atol=5e-6, rtol=0)
            if held.has("io.posterior_noise", "io.z"):
                sampled = model.encode(images, noise=kit["io.posterior_noise"])
                torch.testing.assert_close(sampled, kit["io.z"], atol=5e-6, rtol=0)
        if held.has("io.z"):
            clamped = model.decode(kit["io.z"])
            assert clamped.min() >= 0 and clamped.max() <= 1
            for _, expected in held.of(["io.reconstruction"]):
                near(model.decode(kit["io.z"], clamp=False) * 2 - 1, expected, "reconstruction")


@needs_kit
@each_kit
def test_posterior_noise_comes_from_the_generator(path: Path) -> None:
    _, kit = read_kit(path)
    model = KLAutoencoder(_config(path), weights=weights_file(path), chunk=1)
    images = (kit["io.image"] + 1) / 2
    first = model.encode(images, torch.Generator().manual_seed(3))
    assert torch.equal(first, model.encode(images, torch.Generator().manual_seed(3)))
    assert not torch.equal(first, model.encode(images, torch.Generator().manual_seed(4)))


@needs_kit
@each_kit
def test_a_file_that_does_not_fit_lists_its_keys(path: Path, tmp_path: Path) -> None:
    _, kit = read_kit(path)
    state = {k: v for k, v in kit.items() if k.startswith("first_stage_model.")}
    state["first_stage_model.surplus"] = state.pop("first_stage_model.encoder.conv_in.bias")
    save_file(state, tmp_path / "broken.safetensors")
    with pytest.raises(
        BadWeightsError, match=r"broken\.safetensors.*1 missing: encoder.conv_in.bias.*1 unexpected: surplus"
    ):
        KLAutoencoder(_config(path), weights=tmp_path / "broken.safetensors")


def test_released_layout() -> None:
    prefix = "first_stage_model."
    released = {
        k[len(prefix) :]: torch.empty(v[0], device="meta")
        for k, v in named_kit("unet_512_interp_keys.json").items()
        if k.startswith(prefix)
    }
    with torch.device("meta"):
        model = KLAutoencoder(random_init=True)
    ours = {name: value.shape for name, value in model.vae.state_dict().items()}
    assert {name: value.shape for name, value in diffusers_names(released, 4).items()} == ours
