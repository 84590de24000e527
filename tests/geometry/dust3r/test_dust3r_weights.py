"""Weights of DUSt3R: the forms they are released in, and what is refused with which words."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path, PurePosixPath

import pytest
import torch
from dust3r_networks import TINY, tiny_network
from safetensors.torch import save_file
from torch import Tensor

from reconx_pl.errors import BadWeightsError, ConfigurationError, MissingWeightsError
from reconx_pl.geometry.dust3r.config import Dust3rConfig
from reconx_pl.geometry.dust3r.inference import predict_pairs
from reconx_pl.geometry.dust3r.model import Dust3r
from reconx_pl.geometry.dust3r.names import to_official_name, unused_names
from reconx_pl.geometry.dust3r.released_config import config_of, parse_model_string
from reconx_pl.geometry.dust3r.weights import load_released, load_state, save_weights

# what the factory of the original hard-codes is not in a model string: these networks have heads of full size
FULL_HEAD = {key: getattr(Dust3rConfig(), key) for key in ("dpt_width", "dpt_output_width", "dpt_level_widths")}
STRING = (
    "AsymmetricCroCo3DStereo(pos_embed='RoPE100', patch_embed_cls='ManyAR_PatchEmbed', img_size=(512, 512), "
    "head_type='linear', output_mode='pts3d', depth_mode=('exp', -inf, inf), conf_mode=('exp', 1, inf), "
    "enc_embed_dim=32, enc_depth=1, enc_num_heads=2, dec_embed_dim=24, dec_depth=4, dec_num_heads=2)"
)
HUB = {
    "conf_mode": ["exp", 1, math.inf], "depth_mode": ["exp", -math.inf, math.inf], "dec_depth": 4, "dec_embed_dim": 24,
    "dec_num_heads": 2, "enc_depth": 1, "enc_embed_dim": 32, "enc_num_heads": 2, "freeze": "none",
    "head_type": "linear", "img_size": [512, 512], "landscape_only": False, "output_mode": "pts3d",
    "patch_embed_cls": "PatchEmbedDust3R", "pos_embed": "RoPE100",
}  # fmt: skip


def official(model: Dust3r) -> dict[str, Tensor]:
    state = {to_official_name(name): value.clone() for name, value in model.state_dict().items()}
    return state | {name: torch.zeros(1) for name in unused_names(model.config)}


def linear() -> Dust3r:
    return tiny_network(head="linear", **FULL_HEAD)


def same(one: Dust3r, other: Dust3r) -> bool:
    state = other.state_dict()
    return one.config == other.config and all(value.equal(state[name]) for name, value in one.state_dict().items())


def test_the_released_pth(tmp_path: Path) -> None:
    model, path = linear(), tmp_path / "DUSt3R.pth"
    args = argparse.Namespace(model=STRING, epochs=90, lr=1e-4, pretrained=None)
    torch.save({"args": args, "model": official(model), "epoch": 3}, path)
    assert same(load_released(path), model)
    assert (
        argparse.Namespace not in torch.serialization.get_safe_globals()
    )  # the class is let through for this file alone


def test_the_hub_folder(tmp_path: Path) -> None:
    model = linear()
    save_file(official(model), tmp_path / "model.safetensors")
    with pytest.raises(MissingWeightsError, match=r"config\.json"):
        load_released(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(HUB))
    assert "Infinity" in (tmp_path / "config.json").read_text()
    assert same(load_released(tmp_path), model)
    # the file alone does not say what it is
    file = tmp_path / "model.safetensors"
    with pytest.raises(BadWeightsError, match=r"missing: .*dec_blocks.*512 DPT model: give the Dust3rConfig"):
        load_released(file)
    assert same(load_released(file, model.config), model)


def test_our_own_file_states_its_configuration(tmp_path: Path) -> None:
    model, path = tiny_network(rope_base=50.0), tmp_path / "tiny.safetensors"
    save_weights(model, path)
    loaded = load_released(path)
    assert same(loaded, model) and not loaded.training
    with pytest.raises(ConfigurationError, match="leave out the latter"):
        load_released(path, Dust3rConfig())


@pytest.mark.parametrize("kept", ["both", "attributes", "list"])
def test_tensors_with_two_names(kept: str) -> None:
    source, target = tiny_network(), tiny_network()
    state = official(source)
    for name in [name for name in state if "_rn." in name]:
        head, level = name.split("layer")[0], int(name.split("layer")[1][0])
        alias = f"{head}layer_rn.{level - 1}.weight"
        if kept != "attributes":
            state[alias] = state[name].clone() + 0
        if kept == "list":
            del state[name]
    for parameter in target.parameters():
        parameter.data.zero_()
    load_state(target, state, "file")
    assert same(target, source)
    if kept == "both":
        state[alias] += 1
        with pytest.raises(BadWeightsError, match=r"layer_rn\.3\.weight and .*layer4_rn\.weight are one tensor"):
            load_state(target, state, "file")


def test_every_difference_is_listed() -> None:
    model = tiny_network()
    state = official(model)
    del state["dec_blocks2.1.norm_y.bias"]
    state["enc_blocks.1.norm1.bias"] = torch.zeros(32)
    state["decoder_embed.weight"] = torch.zeros(24, 31)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(
        BadWeightsError,
        match=r"f\.pth does not fit.*1 missing: dec_blocks2\.1\.norm_y\.bias.*1 unexpected: enc_blocks\.1\.norm1\.bias"
        r".*decoder_embed\.weight: file \(24, 31\), model \(24, 32\)",
    ):
        load_state(model, state, "f.pth")
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_unused_tensors_may_be_absent() -> None:
    model = tiny_network()
    assert len(unused_names(model.config)) == 9
    load_state(model, {to_official_name(name): value for name, value in model.state_dict().items()}, "file")


@pytest.mark.slow
@torch.no_grad()
def test_a_full_size_network_is_saved_loaded_and_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, path = Dust3r().eval(), tmp_path / "full.safetensors"
    save_weights(source, path)
    assert path.stat().st_size > 2.27e9
    del source  # one copy in memory at a time
    model = load_released(path)
    assert sum(parameter.numel() for parameter in model.parameters()) == 568_810_120
    images = list(torch.rand(2, 3, 384, 512, generator=torch.Generator().manual_seed(1)))
    found = predict_pairs(model, images, torch.tensor([[0, 1]]))
    path.unlink()
    assert found.points[0][0].shape == found.points[0][1].shape == (384, 512, 3)
    assert all(part.isfinite().all() and part.std() > 0 for part in (*found.points[0], *found.confidence[0]))


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    with pytest.raises(MissingWeightsError, match=r"model\.pth.*reconx weights fetch"):
        load_released(path)
    path.touch()
    with pytest.raises(BadWeightsError, match=r"model\.pth.*empty"):
        load_released(path)
    args = argparse.Namespace(model=STRING)
    torch.save({"args": args, "model": official(linear())}, path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(BadWeightsError, match=r"model\.pth.*cut short"):
        load_released(path)
    for content, message in (
        ({"state_dict": {}}, "'model'.*'args'.*state_dict"),
        ([1], "neither"),
        ({"model": {"a": torch.zeros(1)}, "args": {"model": STRING}}, "no model string"),
        ({"model": {}, "args": argparse.Namespace(model="CroCoNet()")}, "another model"),
        ({"model": {}, "args": argparse.Namespace(where=PurePosixPath("a"))}, "unpickles"),
    ):
        torch.save(content, path)
        with pytest.raises(BadWeightsError, match=message):
            load_released(path)


def test_the_model_string_is_read_and_not_run(tmp_path: Path) -> None:
    fields = parse_model_string(STRING, "f")
    assert fields["depth_mode"] == ("exp", -math.inf, math.inf) and fields["img_size"] == (512, 512)
    assert config_of(fields, "f") == Dust3rConfig(**{**TINY, **FULL_HEAD, "head": "linear"})  # type: ignore[arg-type]
    touched = tmp_path / "touched"
    for text in (
        f"AsymmetricCroCo3DStereo(enc_depth=open({str(touched)!r}, 'w').close())",
        f"open({str(touched)!r}, 'w')",
        "AsymmetricCroCo3DStereo(24)",
        "AsymmetricCroCo3DStereo(**{})",
        "AsymmetricCroCo3DStereo(",
        "AsymmetricCroCo3DStereo(enc_depth=nan)",
    ):
        with pytest.raises(BadWeightsError, match=r"^f:"):
            parse_model_string(text, "f")
    assert not touched.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos_embed": "cosine"}, "only RoPE"),
        ({"depth_mode": ["linear", -math.inf, math.inf]}, "depth_mode"),
        ({"conf_mode": ["exp", 0, math.inf]}, "conf_mode"),
        ({"head_type": "dense"}, "head is"),
        ({"two_confs": True}, "unknown argument two_confs"),
        ({"enc_num_heads": "many"}, "f: "),
    ],
)
def test_what_is_not_implemented_is_said(change: dict, message: str) -> None:
    assert config_of(HUB, "f").encoder_width == 32
    with pytest.raises(BadWeightsError, match=message):
        config_of(HUB | change, "f")
    assert config_of(HUB | {"conf_mode": ["exp", 1, "Infinity"]}, "f") == config_of(HUB, "f")
