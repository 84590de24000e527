"""Names of the official checkpoint and ours, and strict loading."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reconx_pl.diffusion.config import UNetConfig
from reconx_pl.diffusion.unet import UNet
from reconx_pl.diffusion.weights import (
    STRUCTURE_PARAMETERS,
    from_official_name,
    load_official_unet,
    load_unet_weights,
    to_official_name,
    to_official_unet,
)
from reconx_pl.errors import BadWeightsError

CONFIG = UNetConfig(
    model_channels=64,
    channel_mult=(1,),
    num_res_blocks=1,
    attention_strides=(1,),
    num_head_channels=16,
    context_dim=16,
    image_gate=True,
)


@pytest.fixture()
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(CONFIG)


@pytest.fixture()
def official(unet: UNet) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(value.shape, generator=generator)
        for name, value in to_official_unet(unet.state_dict()).items()
    }


def test_names_there_and_back(unet: UNet) -> None:
    assert to_official_name("input_blocks.1.0.temporal_conv.conv1.0.weight") == (
        "model.diffusion_model.input_blocks.1.0.temopral_conv.conv1.0.weight"
    )
    for name in unet.state_dict():
        assert from_official_name(to_official_name(name)) == name


def test_official_weights_there_and_back(unet: UNet, official: dict[str, Tensor]) -> None:
    assert official["model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.alpha"].shape == ()
    load_unet_weights(unet, load_official_unet({**official, "first_stage_model.decoder.conv_in.bias": torch.zeros(1)}))
    again = to_official_unet(unet.state_dict())
    assert again.keys() == official.keys()
    assert all(torch.equal(again[name], official[name]) for name in official)


def test_missing_structure_branch_keeps_its_start_unless_refused(unet: UNet, official: dict[str, Tensor]) -> None:
    before = {name: value.clone() for name, value in unet.state_dict().items() if STRUCTURE_PARAMETERS.search(name)}
    assert len(before) == 3 * 4  # down, middle, two up
    load_unet_weights(unet, load_official_unet(official))
    assert all(torch.equal(unet.state_dict()[name], value) for name, value in before.items())
    with pytest.raises(BadWeightsError, match="12 missing.*structure_gate"):
        load_unet_weights(unet, load_official_unet(official), allow_missing_structure=False)


def test_half_a_structure_branch_is_an_error(unet: UNet) -> None:
    state = dict(unet.state_dict())
    del state["middle_block.1.transformer_blocks.0.attn2.structure_gate"]
    with pytest.raises(BadWeightsError, match="1 missing: middle_block.1.*structure_gate"):
        load_unet_weights(unet, state)


def test_missing_unexpected_and_misshapen_are_listed_and_nothing_is_changed(
    unet: UNet, official: dict[str, Tensor]
) -> None:
    state = load_official_unet(official)
    del state["out.2.bias"]
    state["surplus.weight"] = torch.zeros(1)
    state["out.2.weight"] = torch.zeros(3)
    before = unet.state_dict()["out.0.weight"].clone()
    with pytest.raises(BadWeightsError) as error:
        load_unet_weights(unet, state, "model.ckpt")
    for part in (
        "model.ckpt",
        "1 missing: out.2.bias",
        "1 unexpected: surplus.weight",
        "out.2.weight: file (3,), model",
    ):
        assert part in str(error.value)
    assert torch.equal(unet.state_dict()["out.0.weight"], before)


def test_a_file_of_another_model_is_named() -> None:
    with pytest.raises(BadWeightsError, match="vae.ckpt has no key under 'model.diffusion_model.'.*encoder.weight"):
        load_official_unet({"encoder.weight": torch.zeros(1)}, "vae.ckpt")


def test_meta_model_needs_its_structure_branch(official: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        unet = UNet(CONFIG)
    with pytest.raises(BadWeightsError, match="meta device"):
        load_unet_weights(unet, load_official_unet(official), assign=True)
