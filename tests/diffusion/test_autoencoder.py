"""Autoencoders: exact inversion, the scale of latents of real photographs, refused inputs, the frozen state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reconx_pl.diffusion.autoencoder import Autoencoder, KLAutoencoder, KLAutoencoderConfig, PixelUnshuffleAutoencoder
from reconx_pl.errors import BadWeightsError, ConfigurationError, MissingWeightsError

TINY = KLAutoencoderConfig(block_out_channels=(32, 64), layers_per_block=1)


@pytest.mark.parametrize("factor", [1, 4, 8])
def test_pixel_unshuffle_inverts_exactly(factor: int) -> None:
    model: Autoencoder = PixelUnshuffleAutoencoder(factor)
    images = torch.randint(0, 256, (2, 3, 32, 48), generator=torch.Generator().manual_seed(0)).float() / 255
    latents = model.encode(images)
    assert latents.shape == (2, 3 * factor**2, 32 // factor, 48 // factor)
    assert latents.shape[1] == model.latent_channels
    torch.testing.assert_close(model.decode(latents), images, atol=1e-7, rtol=0)
    assert torch.equal((model.decode(latents) * 255).round(), (images * 255).round())
    assert not list(PixelUnshuffleAutoencoder(factor).parameters())


def test_pixel_unshuffle_latents_of_photographs_have_about_unit_scale(shared_dir: Path) -> None:
    from PIL import Image
    from torchvision.transforms.functional import to_tensor

    paths = sorted(shared_dir.glob("scenes/**/*.[jp][pn]g"))[::10][:12]
    assert paths
    model = PixelUnshuffleAutoencoder(8)
    latents = [model.encode(to_tensor(Image.open(p).convert("RGB").resize((256, 256)))[None]) for p in paths]
    assert 0.6 < torch.cat(latents).std() < 1.6


def test_pixel_unshuffle_clamps_only_when_asked() -> None:
    model = PixelUnshuffleAutoencoder(2)
    latents = torch.full((1, 12, 2, 2), 9.0)
    assert model.decode(latents).max() == 1
    assert model.decode(latents, clamp=False).max() > 1


@pytest.mark.parametrize("model", [PixelUnshuffleAutoencoder(8), KLAutoencoder(TINY, random_init=True)])
def test_sides_that_do_not_divide_are_refused(model: Autoencoder) -> None:
    with pytest.raises(ConfigurationError, match=r"factor"):
        model.encode(torch.rand(1, 3, 33, 33))


def test_kl_autoencoder_without_weights_says_where_to_get_them() -> None:
    with pytest.raises(MissingWeightsError, match=r"weights=<file>.*PixelUnshuffleAutoencoder"):
        KLAutoencoder(TINY)
    with pytest.raises(MissingWeightsError, match=r"absent\.safetensors"):
        KLAutoencoder(TINY, weights="absent.safetensors")


def test_kl_autoencoder_refuses_a_pickle_and_a_broken_file(tmp_path: Path) -> None:
    torch.save({"state_dict": {"first_stage_model.x": torch.zeros(1)}, "hook": print}, tmp_path / "objects.ckpt")
    with pytest.raises(BadWeightsError, match=r"objects\.ckpt.*convert it to \.safetensors"):
        KLAutoencoder(TINY, weights=tmp_path / "objects.ckpt")
    (tmp_path / "broken.safetensors").write_bytes(b"not a file of tensors")
    with pytest.raises(BadWeightsError, match=r"broken\.safetensors"):
        KLAutoencoder(TINY, weights=tmp_path / "broken.safetensors")


def test_kl_autoencoder_is_frozen_and_loads_its_own_names(tmp_path: Path) -> None:
    model = KLAutoencoder(TINY, random_init=True)
    assert model.factor == 2 and model.latent_channels == 4
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.train().training and not model.vae.training
    torch.save(model.vae.state_dict(), tmp_path / "vae.pt")
    again = KLAutoencoder(TINY, weights=tmp_path / "vae.pt")
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.encode(images), model.encode(images))
    assert model.decode(model.encode(images)).shape == images.shape


def test_kl_frames_are_independent_of_each_other() -> None:
    model = KLAutoencoder(TINY, random_init=True)
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.encode(images)[1:2], model.encode(images[1:2]), atol=1e-6, rtol=0)
