"""What a stage trains, by name, on the real U-Net (meta device, full size) against the published parameter groups."""

from __future__ import annotations

import json

import pytest
import torch
from golden_kits import golden_kits
from torch import nn

from reconx_pl.diffusion.conditioning.frozen import FrozenModule
from reconx_pl.diffusion.config import UNetConfig
from reconx_pl.diffusion.unet import UNet
from reconx_pl.errors import ConfigurationError
from reconx_pl.training.stages import TRAINED, Stage, apply_stage, group_of


@pytest.fixture(scope="module")
def full_size() -> nn.Module:
    with torch.device("meta"):
        return nn.ModuleDict({"unet": UNet(UNetConfig.dynamicrafter_512())})


def trained(network: nn.Module, stage: Stage) -> dict[str, int]:
    apply_stage(network, stage)
    return {name: p.numel() for name, p in network.named_parameters() if p.requires_grad}


def test_stage_1_trains_the_image_keys_and_values(full_size: nn.Module) -> None:
    names = trained(full_size, Stage.image_attention)
    assert len(names) == 32 and sum(names.values()) == 25_559_040
    assert all(name.endswith(("attn2.to_k_ip.weight", "attn2.to_v_ip.weight")) for name in names)


def test_stage_2_trains_structure_and_everything_spatial(full_size: nn.Module) -> None:
    names = trained(full_size, Stage.structure)
    structure = {name for name in names if group_of(name) == "structure"}
    spatial = {name: count for name, count in names.items() if name not in structure}
    assert len(spatial) == 722 and sum(spatial.values()) == 893_531_844
    assert len(structure) == 48  # keys, values and a gate for each of 16 spatial transformers
    assert not any("temporal_conv" in name or "init_attn" in name for name in names)


def test_the_control_of_the_ablation_trains_stage_2_without_structure(full_size: nn.Module) -> None:
    control, stage2 = trained(full_size, Stage.spatial), trained(full_size, Stage.structure)
    assert control == {name: count for name, count in stage2.items() if group_of(name) != "structure"}


def test_base_leaves_structure_alone(full_size: nn.Module) -> None:
    names = trained(full_size, Stage.base)
    assert sum(names.values()) == 1_438_854_980
    assert not any("structure" in name for name in names)


@pytest.mark.parametrize("path", golden_kits("unet_512_param_groups.json"), ids=lambda path: path.stem)
def test_against_the_published_groups(full_size: nn.Module, path) -> None:
    groups = json.loads(path.read_text())["groups"]
    image = groups["image_cross_attention_strict"]
    spatial = groups["spatial_layers_stage2 (everything that is not temporal)"]
    temporal = groups["temporal_layers"]
    counted = {name: p.numel() for name, p in full_size.named_parameters()}
    own = {
        group: [n for name, n in counted.items() if group_of(name) == group]
        for group in ("image_attention", "spatial", "temporal")
    }
    assert (len(own["image_attention"]), sum(own["image_attention"])) == (image["keys"], image["params"])
    assert (len(own["temporal"]), sum(own["temporal"])) == (temporal["keys"], temporal["params"])
    both = own["image_attention"] + own["spatial"]
    assert (len(both), sum(both)) == (spatial["keys"], spatial["params"])


def test_every_stage_has_its_set() -> None:
    assert set(TRAINED) == set(Stage)


def test_a_parameter_without_a_group_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="novelty.weight"):
        group_of("novelty.weight")


def test_a_frozen_encoder_stays_frozen() -> None:
    encoder = FrozenModule()
    encoder.layer = nn.Linear(2, 2)
    network = nn.ModuleDict({"image_tokens": nn.ModuleDict({"encoder": encoder, "head": nn.Linear(2, 2)})})
    assert apply_stage(network, Stage.base) == {"image_tokens": 6}
    assert not any(p.requires_grad for p in encoder.parameters())
