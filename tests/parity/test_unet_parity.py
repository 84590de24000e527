"""The U-Net against the original: outputs, gradients and activations of every small kit, keys of the full one."""

from __future__ import annotations

import json
import logging
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from golden_kits import golden_kits
from safetensors.torch import load_file
from torch import Tensor

from reconx_pl.diffusion.config import UNetConfig
from reconx_pl.diffusion.unet import UNet
from reconx_pl.diffusion.weights import (
    STRUCTURE_PARAMETERS,
    from_official_name,
    load_official_unet,
    load_unet_weights,
    to_official_unet,
)

logger = logging.getLogger(__name__)  # figures: pytest --log-cli-level=INFO

TIMES_OWN_ERROR = 20.0  # a case's tolerance: this times the original's own float32 error
RELATIVE = 1e-4  # of the largest magnitude, where a kit gives no tolerance
GRAD_CASES = {"perframe": "io.grad.", "perframe_noalpha": "io.grad_noalpha."}
CASES = [
    (kit, case)
    for kit in golden_kits("unet_tiny_*.json")
    for case in json.loads(kit.read_text(encoding="utf-8"))["cases"]
]


@cache
def read_kit(path: Path) -> tuple[dict, dict[str, Tensor]]:
    return json.loads(path.read_text(encoding="utf-8")), load_file(path.with_suffix(".safetensors"))


def build(kit: Path, case: str) -> UNet:
    info, tensors = read_kit(kit)
    official = info["config"]
    gated = official["image_cross_attention_scale_learnable"] and not case.endswith("_noalpha")
    config = UNetConfig(
        **{
            name: official[name]
            for name in (
                "in_channels",
                "out_channels",
                "model_channels",
                "channel_mult",
                "num_res_blocks",
                "num_head_channels",
                "transformer_depth",
                "context_dim",
                "dropout",
            )
        },
        attention_strides=official["attention_resolutions"],
        default_fps=official["default_fs"],
        image_gate=gated,
        structure_guidance=False,
    )
    state = load_official_unet(tensors, str(kit))
    if not gated:
        state = {key: value for key, value in state.items() if not key.endswith(".attn2.alpha")}
    unet = UNet(config).eval()
    load_unet_weights(unet, state, str(kit))
    return unet


def inputs(kit: Path, case: str) -> tuple[Tensor, dict[str, Tensor]]:
    """x, and the conditions in our form: 4-D image tokens where the original splits them over the frames."""
    _, tensors = read_kit(kit)
    other = "_other_T" if "other_T" in case else ""
    x = tensors[f"io.x{other}"]
    image = tensors["io.context_image_other_T" if case == "other_T_perframe" else "io.context_image"]
    if case == "shared_image_tokens":
        image = image[:, :16]
    elif case != "other_T_mismatch":
        image = image.unflatten(1, (x.shape[2], -1))
    conditions = {"text_tokens": tensors["io.context_text"], "image_tokens": image}
    if case != "default_fs":
        conditions["fps"] = tensors["io.fs"]
    return x, conditions


def test_kits_are_there(golden_dir: Path) -> None:
    assert len(CASES) >= 6, f"no unet_tiny_* kit in {golden_dir}"


@pytest.mark.parametrize(("kit", "case"), CASES, ids=[f"{kit.stem}-{case}" for kit, case in CASES])
def test_output(kit: Path, case: str) -> None:
    info, tensors = read_kit(kit)
    x, conditions = inputs(kit, case)
    with torch.no_grad():
        out = build(kit, case)(x, tensors["io.timesteps"], **conditions)
    error = (out - tensors[f"io.out.{case}"]).abs().max().item()
    allowed = TIMES_OWN_ERROR * info["cases"][case]["max_abs_err_vs_float64"]
    logger.info(f"{kit.stem} {case}: {error:.2e} of {allowed:.2e} allowed")
    assert error <= allowed


GRADIENT_CASES = [(kit, case) for kit, case in CASES if case in GRAD_CASES]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "recomputed"])
@pytest.mark.parametrize(("kit", "case"), GRADIENT_CASES, ids=[f"{kit.stem}-{case}" for kit, case in GRADIENT_CASES])
def test_gradients(kit: Path, case: str, checkpointing: bool) -> None:
    info, tensors = read_kit(kit)
    unet = build(kit, case)
    unet.set_activation_checkpointing(checkpointing)
    x, conditions = inputs(kit, case)
    x = x.clone().requires_grad_()
    conditions = {key: value.clone() for key, value in conditions.items()}
    for name in ("text_tokens", "image_tokens"):
        conditions[name].requires_grad_()
    out = unet(x, tensors["io.timesteps"], **conditions)
    (out * tensors["io.grad_out"]).sum().backward()

    prefix, parameters = GRAD_CASES[case], dict(unet.named_parameters())
    context = torch.cat([conditions["text_tokens"].grad, conditions["image_tokens"].grad.flatten(1, 2)], dim=1)
    compared = {"x": (x.grad, tensors[f"{prefix}x"]), "context": (context, tensors[f"{prefix}context"])}
    if case == "perframe":
        for key, expected in tensors.items():
            if key.startswith("io.grad.param."):
                name = from_official_name(key.removeprefix("io.grad.param."))
                compared[name] = (parameters[name].grad, expected)
        assert len(compared) > 2
    worst = {}
    for name, (actual, expected) in compared.items():
        worst[name] = ((actual - expected).abs().max() / expected.abs().max()).item()
    logger.info(f"{kit.stem} {case}: largest gradient error {max(worst.values()):.2e} of the largest entry")
    assert max(worst.values()) <= RELATIVE, worst

    norms = {from_official_name(key): value for key, value in info[f"grad_norms_{case}"].items()}
    assert norms.keys() == parameters.keys()
    # parameters that a GroupNorm with one channel a group cancels have gradients of rounding errors
    cancelled = {from_official_name(key) for key in info["insensitive_parameters"]}
    found = {name: parameters[name].grad.norm().item() for name in norms}
    ratios = {name: abs(found[name] - norm) / norm for name, norm in norms.items() if name not in cancelled}
    logger.info(
        f"{kit.stem} {case}: {len(ratios)} of {len(norms)} gradient norms, largest error {max(ratios.values()):.2e}"
    )
    assert len(ratios) > 0.9 * len(norms)
    assert max(ratios.values()) <= 1e-3, max(ratios, key=lambda name: ratios[name])
    assert all(found[name] <= 1e-5 * max(norms.values()) for name in cancelled)


@pytest.mark.parametrize("kit", golden_kits("unet_tiny_*.json"), ids=lambda kit: kit.stem)
def test_activations(kit: Path) -> None:
    _, tensors = read_kit(kit)
    unet = build(kit, "perframe")
    expected = {key.removeprefix("io.act."): value for key, value in tensors.items() if key.startswith("io.act.")}
    assert expected
    seen: dict[str, Tensor] = {}
    for name in expected:
        module = unet.get_submodule(from_official_name(f"{name}.").removesuffix("."))
        module.register_forward_hook(lambda module, args, out, name=name: seen.__setitem__(name, out))
    x, conditions = inputs(kit, "perframe")
    with torch.no_grad():
        unet(x, tensors["io.timesteps"], **conditions)
    errors = {}
    for name, reference in expected.items():
        actual = seen[name]
        if reference.ndim == 5:  # [B, C, T, h, w]; ours is [(B T), C, h, w]
            actual = actual.unflatten(0, (reference.shape[0], -1)).transpose(1, 2)
        elif reference.ndim == 3:  # [(B T), h*w, C]; ours is [B, T, h*w, C]
            actual = actual.flatten(0, 1)
        errors[name] = ((actual - reference).abs().max() / reference.abs().max()).item()
    logger.info(f"{kit.stem}: {len(errors)} activations, largest error {max(errors.values()):.2e}")
    assert max(errors.values()) <= 2e-5, errors


@pytest.fixture(scope="module")
def official_keys(golden_dir: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the U-Net of the released 512 checkpoint layout."""
    layout = json.loads((golden_dir / "unet_512_interp_keys.json").read_text(encoding="utf-8"))
    return {key: tuple(shape) for key, (shape, _) in layout.items() if key.startswith("model.diffusion_model.")}


def test_full_size_has_the_official_keys_and_shapes(official_keys: dict[str, tuple[int, ...]]) -> None:
    with torch.device("meta"):
        plain = UNet(UNetConfig.dynamicrafter_512(structure_guidance=False))
        guided = UNet(UNetConfig.dynamicrafter_512())
    shapes = {key: tuple(value.shape) for key, value in to_official_unet(plain.state_dict()).items()}
    assert shapes == official_keys
    assert sum(parameter.numel() for parameter in plain.parameters()) == 1_438_854_980

    additional = guided.state_dict().keys() - plain.state_dict().keys()
    assert plain.state_dict().keys() < guided.state_dict().keys()
    assert len(additional) == 3 * 16  # keys, values and gate in each of 16 spatial transformers
    assert {name for name in guided.state_dict() if STRUCTURE_PARAMETERS.search(name)} == additional
    assert to_official_unet(guided.state_dict()).keys() == official_keys.keys()


def test_full_size_takes_the_official_layout(official_keys: dict[str, tuple[int, ...]]) -> None:
    with torch.device("meta"):
        unet = UNet(UNetConfig.dynamicrafter_512(structure_guidance=False))
        state = {key: torch.empty(shape) for key, shape in official_keys.items()}
    state["first_stage_model.encoder.conv_in.bias"] = torch.zeros(128)
    load_unet_weights(unet, load_official_unet(state), assign=True)


def test_parameter_groups_keep_their_counts(golden_dir: Path) -> None:
    """The official groups, by regular expression, on our names after mapping: what a training stage may rely on."""
    groups = json.loads((golden_dir / "unet_512_param_groups.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        official = to_official_unet(UNet(UNetConfig.dynamicrafter_512()).state_dict())
    left, counted = dict(official), {}
    for category, entry in groups["categories"].items():
        mine = [key for key in left if re.search(entry["regex"], key)]
        counted[category] = {"keys": len(mine), "params": sum(left.pop(key).numel() for key in mine)}
        assert counted[category] == {"keys": entry["keys"], "params": entry["params"]}, category
    assert not left
    for name, group in groups["groups"].items():
        for unit in ("keys", "params"):
            assert sum(counted[category][unit] for category in group["categories"]) == group[unit], name


def test_full_size_does_the_work_of_the_original_less_its_repetitions(golden_dir: Path) -> None:
    """Every multiplication is accounted for: the same, but for what the original repeats for each frame of a clip."""
    from torch.utils.flop_counter import FlopCounterMode

    runs = json.loads((golden_dir / "flops_512.json").read_text(encoding="utf-8"))["runs"]
    run = next(run for run in runs if not run["per_frame_image_tokens"])  # image tokens shared by all frames
    batch, frames = run["batch"], run["frames"]
    with torch.device("meta"):
        unet = UNet(UNetConfig.dynamicrafter_512(structure_guidance=False))
        x = torch.empty(batch, 8, frames, *run["latent_hw"])
        text, image = torch.empty(batch, 77, 1024), torch.empty(batch, run["context_tokens"] - 77, 1024)
        with FlopCounterMode(display=False) as counter:
            unet(x, torch.empty(batch), text_tokens=text, image_tokens=image)
    keys_values = [f"spatial_transformer.attn2.to_{kind}" for kind in ("k", "v", "k_ip", "v_ip")]
    repeated = sum(run["breakdown_tflops"][part] for part in [*keys_values, "resblock_emb"])
    found = counter.get_total_flops() / 1e12
    logger.info(f"forward {found:.4f} TFLOP, the original {run['forward_tflops']:.4f}")
    assert found == pytest.approx(run["forward_tflops"] - repeated * (1 - 1 / frames), rel=1e-9)
