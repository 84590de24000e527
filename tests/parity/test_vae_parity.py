"""The KL autoencoder against the reference, through the renaming of its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from golden_kits import golden_kits
from safetensors.torch import load_file, save_file

from reconx_pl.diffusion.autoencoder import KLAutoencoder, KLAutoencoderConfig, diffusers_names
from reconx_pl.errors import BadWeightsError

KITS = golden_kits("vae_*.json")
needs_kit = pytest.mark.skipif(not KITS, reason="needs the golden kits vae_*.json")
each_kit = pytest.mark.parametrize("path", KITS, ids=lambda path: path.stem)


def _config(path: Path) -> KLAutoencoderConfig:
    description = json.loads(path.read_text())
    sizes = description["ddconfig"]
    return KLAutoencoderConfig(
        block_out_channels=tuple(sizes["ch"] * m for m in sizes["ch_mult"]),
        layers_per_block=sizes["num_res_blocks"],
        latent_channels=sizes["z_channels"],
        scale=description["scale_factor"],
    )


@needs_kit
@each_kit
@pytest.mark.parametrize("chunk", [1, 8])
def test_latents_and_reconstruction(path: Path, chunk: int) -> None:
    kit = load_file(path.with_suffix(".safetensors"))
    errors = json.loads(path.read_text())["max_abs_err_vs_float64"]
    model = KLAutoencoder(_config(path), weights=path.with_suffix(".safetensors"), chunk=chunk)
    images = (kit["io.image"] + 1) / 2
    torch.testing.assert_close(model.moments(images), kit["io.moments"], atol=20 * errors["moments"], rtol=0)
    torch.testing.assert_close(model.encode(images), kit["io.z_mode"], atol=5e-6, rtol=0)
    sampled = model.encode(images, noise=kit["io.posterior_noise"])
    torch.testing.assert_close(sampled, kit["io.z"], atol=5e-6, rtol=0)
    decoded = model.decode(kit["io.z"], clamp=False) * 2 - 1
    torch.testing.assert_close(decoded, kit["io.reconstruction"], atol=20 * errors["reconstruction"], rtol=0)
    clamped = model.decode(kit["io.z"])
    assert clamped.min() >= 0 and clamped.max() <= 1


@needs_kit
@each_kit
def test_posterior_noise_comes_from_the_generator(path: Path) -> None:
    kit = load_file(path.with_suffix(".safetensors"))
    model = KLAutoencoder(_config(path), weights=path.with_suffix(".safetensors"), chunk=1)
    images = (kit["io.image"] + 1) / 2
    first = model.encode(images, torch.Generator().manual_seed(3))
    assert torch.equal(first, model.encode(images, torch.Generator().manual_seed(3)))
    assert not torch.equal(first, model.encode(images, torch.Generator().manual_seed(4)))


@needs_kit
@each_kit
def test_a_file_that_does_not_fit_lists_its_keys(path: Path, tmp_path: Path) -> None:
    kit = load_file(path.with_suffix(".safetensors"))
    state = {k: v for k, v in kit.items() if k.startswith("first_stage_model.")}
    state["first_stage_model.surplus"] = state.pop("first_stage_model.encoder.conv_in.bias")
    save_file(state, tmp_path / "broken.safetensors")
    with pytest.raises(
        BadWeightsError, match=r"broken\.safetensors.*1 missing: encoder.conv_in.bias.*1 unexpected: surplus"
    ):
        KLAutoencoder(_config(path), weights=tmp_path / "broken.safetensors")


@pytest.mark.skipif(not golden_kits("unet_512_interp_keys.json"), reason="needs unet_512_interp_keys.json")
def test_released_layout() -> None:
    (path,) = golden_kits("unet_512_interp_keys.json")
    prefix = "first_stage_model."
    released = {
        k[len(prefix) :]: torch.empty(v[0], device="meta")
        for k, v in json.loads(path.read_text()).items()
        if k.startswith(prefix)
    }
    with torch.device("meta"):
        model = KLAutoencoder(random_init=True)
    ours = {name: value.shape for name, value in model.vae.state_dict().items()}
    assert {name: value.shape for name, value in diffusers_names(released, 4).items()} == ours
