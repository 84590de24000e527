"""A checkpoint in the layout of the released DynamiCrafter 512 is where stage 1 starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reconx_pl.conditioning.image_tokens import ClipImageTokens, ClipVisionConfig
from reconx_pl.conditioning.resampler import ResamplerConfig
from reconx_pl.conditioning.structure import StructureEncoderConfig
from reconx_pl.conditioning.text_tokens import ClipTextConfig, ClipTextTokens
from reconx_pl.diffusion.autoencoder import KLAutoencoder, KLAutoencoderConfig
from reconx_pl.diffusion.config import UNetConfig
from reconx_pl.diffusion.model import ReconXDiffusion
from reconx_pl.diffusion.weights import to_official_unet
from reconx_pl.errors import BadWeightsError
from reconx_pl.training.checkpoints import load_network, own_weights, save_network


def tiny(frames: int, seed: int) -> ReconXDiffusion:
    """The classes of the full-size model, small, with random towers."""
    torch.manual_seed(seed)
    vision = ClipVisionConfig(image_size=28, patch_size=14, width=32, layers=1, head_width=16, embed_dim=16)
    resampler = ResamplerConfig(
        dim=32, depth=1, dim_head=16, heads=2, embedding_dim=32, output_dim=32, video_length=frames
    )
    text = ClipTextConfig(width=32, heads=2, layers=2, embed_dim=16)
    return ReconXDiffusion(
        UNetConfig(model_channels=64, channel_mult=(1,), num_res_blocks=1, attention_strides=(1,), context_dim=32),
        KLAutoencoder(KLAutoencoderConfig(block_out_channels=(32, 32)), random_init=True),
        ClipImageTokens(vision, resampler, random_init=True),
        ClipTextTokens(text, random_init=True),
        StructureEncoderConfig(points=16, tokens=2, width=32),
    )


def released(network: ReconXDiffusion, path: Path) -> Path:
    state = to_official_unet(network.unet.state_dict())
    resampler = network.image_tokens.resampler.state_dict()
    state |= {f"image_proj_model.{name}": tensor for name, tensor in resampler.items()}
    state["first_stage_model.encoder.conv_in.bias"] = torch.zeros(1)  # parts that are read elsewhere
    torch.save({"state_dict": state, "global_step": 1}, path)
    return path


def test_unet_and_resampler_are_loaded_and_structure_is_born(tmp_path: Path) -> None:
    source, target = tiny(4, seed=1), tiny(4, seed=2)
    born = {name: tensor.clone() for name, tensor in own_weights(target).items() if "structure" in name}
    load_network(target, released(source, tmp_path / "model.ckpt"))
    expected, loaded = own_weights(source), own_weights(target)
    for name, tensor in loaded.items():
        assert torch.equal(tensor, born[name] if name in born else expected[name]), name
    assert len(born) > 10 and not any("vae" in name or "tower" in name for name in loaded)


def test_queries_are_interpolated_to_twice_the_frames(tmp_path: Path) -> None:
    source, target = tiny(4, seed=1), tiny(8, seed=2)
    load_network(target, released(source, tmp_path / "model.ckpt"))
    before = source.image_tokens.resampler.latents[0].unflatten(0, (4, 16))
    after = target.image_tokens.resampler.latents[0].unflatten(0, (8, 16))
    torch.testing.assert_close(after[[0, -1]], before[[0, -1]])  # the ends stay
    torch.testing.assert_close(after[1], before[0] + (before[1] - before[0]) * 3 / 7)


def test_a_checkpoint_without_its_resampler_is_refused(tmp_path: Path) -> None:
    source = tiny(4, seed=1)
    path = tmp_path / "unet_only.ckpt"
    torch.save({"state_dict": to_official_unet(source.unet.state_dict())}, path)
    with pytest.raises(BadWeightsError, match=r"unet_only.ckpt.*Missing.*image_tokens.resampler"):
        load_network(tiny(4, seed=2), path)


def test_own_weights_round_trip_without_the_towers(tmp_path: Path) -> None:
    source, target = tiny(4, seed=1), tiny(4, seed=2)
    save_network(source, tmp_path / "weights.safetensors")
    load_network(target, tmp_path / "weights.safetensors")
    assert all(torch.equal(tensor, own_weights(target)[name]) for name, tensor in own_weights(source).items())
    assert not torch.equal(source.image_tokens.tower.visual.conv1.weight, target.image_tokens.tower.visual.conv1.weight)
