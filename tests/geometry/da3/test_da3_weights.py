"""Weights of Depth-Anything-3: the hub's forms, the LayerNorm that four stacks share, and what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from da3_networks import tiny_network
from safetensors.torch import save_file
from torch import Tensor

from reconx_pl.errors import BadWeightsError, ConfigurationError, MissingWeightsError
from reconx_pl.geometry.da3.config import Da3Config
from reconx_pl.geometry.da3.model import DepthAnything3
from reconx_pl.geometry.da3.names import PREFIX, UNUSED, to_official_name
from reconx_pl.geometry.da3.released import RELEASED
from reconx_pl.geometry.da3.weights import load_released, load_state, save_weights

SHARED = "head.scratch.output_conv2_aux.{}.2.{}"


def official(model: DepthAnything3) -> dict[str, Tensor]:
    """As the hub has it: behind ``model.``, the shared LayerNorm once, levels that nothing uses among the rest."""
    state = {PREFIX + to_official_name(name): value.clone() for name, value in model.state_dict().items()}
    return state | {PREFIX + name: torch.zeros(1) for name in UNUSED}


def same(one: DepthAnything3, other: DepthAnything3) -> bool:
    state = other.state_dict()
    return one.config == other.config and all(value.equal(state[name]) for name, value in one.state_dict().items())


def test_the_hub_file_and_its_shared_norm(tmp_path: Path) -> None:
    model, path = tiny_network(), tmp_path / "model.safetensors"
    state = official(model)
    state[PREFIX + SHARED.format(0, "weight")] = torch.linspace(0.5, 1.5, 32)
    assert not any(PREFIX + SHARED.format(level, "bias") in state for level in (1, 2, 3))
    save_file(state, path)
    loaded = load_released(path, model.config)
    assert loaded.head.rays.norm.weight.equal(torch.linspace(0.5, 1.5, 32)) and not loaded.training
    # the level in use is 3, whose other tensors are its own
    assert loaded.head.rays.out.weight.equal(state[f"{PREFIX}head.scratch.output_conv2_aux.3.5.weight"])


def test_a_port_that_left_level_3_at_its_defaults_is_refused() -> None:
    model, target = tiny_network(), tiny_network(seed=1)
    state = official(model)
    for leaf in ("weight", "bias"):
        state[PREFIX + SHARED.format(3, leaf)] = state[PREFIX + SHARED.format(0, leaf)].clone()
    load_state(target, state, "file")
    assert same(target, model)
    state[PREFIX + SHARED.format(3, "weight")] = torch.ones(32)
    with pytest.raises(BadWeightsError, match=r"file: head\.scratch\.output_conv2_aux.*are one tensor and differ"):
        load_state(target, state, "file")


def test_names_without_prefix_and_unused_levels_that_are_absent() -> None:
    model, target = tiny_network(), tiny_network(seed=1)
    state = {to_official_name(name): value for name, value in model.state_dict().items()}
    load_state(target, state, "file")
    assert same(target, model)


def test_every_difference_is_listed() -> None:
    model = tiny_network()
    state = official(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    del state[PREFIX + "cam_dec.fc_t.bias"]
    state[PREFIX + "backbone.pretrained.blocks.0.attn.q_norm.bias"] = torch.zeros(16)
    state[PREFIX + "head.norm.weight"] = torch.zeros(3)
    with pytest.raises(
        BadWeightsError,
        match=r"f\.st does not fit.*1 missing: cam_dec\.fc_t\.bias.*1 unexpected: .*blocks\.0\.attn\.q_norm\.bias"
        r".*head\.norm\.weight: file \(3,\), model \(64,\).*MONO and METRIC",
    ):
        load_state(model, state, "f.st")
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_our_own_file_states_its_configuration(tmp_path: Path) -> None:
    model, path = tiny_network(rope_base=50.0), tmp_path / "tiny.safetensors"
    save_weights(model, path)
    assert same(load_released(path), model)
    with pytest.raises(ConfigurationError, match="leave out the latter"):
        load_released(path, Da3Config())


def test_a_released_size_is_known_by_its_tokens(tmp_path: Path) -> None:
    path = tmp_path / "da3_small.safetensors"
    with torch.device("meta"):
        own = DepthAnything3(Da3Config.small()).state_dict()
    save_file({PREFIX + to_official_name(name): torch.zeros(value.shape) for name, value in own.items()}, path)
    assert load_released(path).config == Da3Config.small()


def test_the_hub_folder(tmp_path: Path) -> None:
    save_file(official(tiny_network()), tmp_path / "model.safetensors")
    with pytest.raises(MissingWeightsError, match=r"config\.json"):
        load_released(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_name": "da3-giant", "config": {}}))
    with pytest.raises(BadWeightsError, match=r"'da3-giant', known are da3-small, da3-base.*head for Gaussians"):
        load_released(tmp_path)
    config.write_text(json.dumps({"model_name": "da3-base", "config": {}}))
    with pytest.raises(BadWeightsError, match="does not fit"):
        load_released(tmp_path)
    config.write_text("[1")
    with pytest.raises(BadWeightsError, match="not readable as JSON"):
        load_released(tmp_path)


def test_files_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match=r"none\.safetensors"):
        load_released(tmp_path / "none.safetensors")
    pickled = tmp_path / "da3.pth"
    pickled.write_bytes(pickle.dumps({"model": Path("x")}))
    with pytest.raises(BadWeightsError, match=r"released as \.safetensors, and nothing else is read"):
        load_released(pickled)
    whole = tmp_path / "whole.safetensors"
    save_weights(tiny_network(), whole)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(BadWeightsError, match=r"cut\.safetensors: not a readable weights file"):
        load_released(cut)
    other = tmp_path / "mono.safetensors"
    save_file({"model.backbone.pretrained.cls_token": torch.zeros(1, 1, 1024)}, other)
    with pytest.raises(BadWeightsError, match=r"no model\.backbone\.pretrained\.camera_token.*MONO"):
        load_released(other)
    save_file({"model.backbone.pretrained.camera_token": torch.zeros(1, 2, 1536)}, other)
    with pytest.raises(BadWeightsError, match=r"width 1536 are none of.*GIANT"):
        load_released(other)


def test_the_released_sizes() -> None:
    for name, millions in (("da3-small", 34.3), ("da3-base", 135.4), ("da3-large", 411.0)):
        with torch.device("meta"):
            model = DepthAnything3(RELEASED[name].config)
        width = RELEASED[name].config.head_width
        # what is not stored here: three levels of five 3 x 3 convolutions, one to 32 channels and one to 7
        narrow = width // 2
        convolutions = 3 * (9 * width * narrow + narrow) + 2 * (9 * narrow * width + width)
        unused = 3 * (convolutions + (9 * narrow * 32 + 32) + (32 * 7 + 7))
        count = sum(value.numel() for value in model.parameters()) + unused
        assert count / 1e6 == pytest.approx(millions, rel=2e-3), name
        # what no tensor shows
        config = RELEASED[name].config
        assert (config.rope_base, config.camera_heads, config.cross_view_start) == (100, 16, config.depth // 3)
        assert config.taps[-1] == config.depth - 1 and all(tap % 2 for tap in config.taps)
    assert [name for name, released in RELEASED.items() if not released.commercial] == ["da3-large"]
