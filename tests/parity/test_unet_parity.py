"""The U-Net against the original: outputs, gradients and activations of every small kit, keys of the full one."""

from __future__ import annotations

import logging
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from golden_kits import Described, Held, KitTensors, described, golden_kits, named_kit, not_held
from golden_kits import read_kit as read
from golden_networks import GATE, unet_config
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
KNOWN = (*GRAD_CASES, "shared_image_tokens", "default_fs", "other_T_perframe", "other_T_mismatch")
# before a GroupNorm with one channel a group, a constant of the channel has no effect
CANCELLED = re.compile(r"(emb_layers\.\d+\.(weight|bias)|\.bias)$")
KITS = golden_kits("unet_tiny_*.json")
CASES = [(kit, case) for kit in KITS for case in described(kit)["cases"]]


@cache
def read_kit(path: Path) -> tuple[Described, KitTensors]:
    return read(path)


def build(kit: Path, case: str) -> UNet:
    info, tensors = read_kit(kit)
    config = unet_config(info["config"], info["config"].get(GATE, False) and not case.endswith("_noalpha"))
    state = load_official_unet(tensors, str(kit))
    if not config.image_gate:
        state = {key: value for key, value in state.items() if not key.endswith(".attn2.alpha")}
    unet = UNet(config).eval()
    load_unet_weights(unet, state, str(kit))
    return unet


def inputs(kit: Path, case: str) -> tuple[Tensor, dict[str, Tensor]]:
    """x, and the conditions in our form: 4-D image tokens where the original splits them over the frames."""
    _, tensors = read_kit(kit)
    if case not in KNOWN:
        not_held(f"a case of a kind that is known here, but {case}", kit.stem)
    other = "_other_T" if "other_T" in case else ""
    x, image = tensors[f"io.x{other}"], tensors["io.context_image"]
    per_frame = image.shape[1] // tensors["io.x"].shape[2]
    if case == "other_T_perframe":
        image = tensors["io.context_image_other_T"]
    if case == "shared_image_tokens":
        image = image[:, :per_frame]
    elif case != "other_T_mismatch":
        image = image.unflatten(1, (x.shape[2], per_frame))
    conditions = {"text_tokens": tensors["io.context_text"], "image_tokens": image}
    if case != "default_fs":
        conditions["fps"] = tensors["io.fs"]
    return x, conditions


def test_every_kit_has_cases(golden_dir: Path) -> None:
    if not KITS:
        not_held("unet_tiny_*", golden_dir.name)
    assert {kit for kit, _ in CASES} == set(KITS)


@pytest.mark.parametrize(("kit", "case"), CASES, ids=[f"{kit.stem}-{case}" for kit, case in CASES])
def test_output(kit: Path, case: str) -> None:
    info, tensors = read_kit(kit)
    x, conditions = inputs(kit, case)
    with torch.no_grad():
        out = build(kit, case)(x, tensors["io.timesteps"], **conditions)
    expected = tensors[f"io.out.{case}"]
    assert out.shape == expected.shape
    error, own = (out - expected).abs().max().item(), info["cases"][case].get("max_abs_err_vs_float64")
    allowed = RELATIVE * expected.abs().max().item() if own is None else TIMES_OWN_ERROR * own
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
    found = {f"{prefix}x": x.grad, f"{prefix}context": context}
    if case == "perframe":
        names = tensors.cases(r"io\.grad\.param\.(.+)") or ["*"]
        found |= {f"io.grad.param.{name}": _gradient(parameters, name) for name in names}
    with Held(tensors) as held:
        worst = {
            name: ((found[name] - expected).abs().max() / expected.abs().max()).item()
            for name, expected in held.of(found)
        }
        logger.info(
            f"{kit.stem} {case}: largest gradient error {max(worst.values(), default=0):.2e} of the largest entry"
        )
        assert max(worst.values(), default=0) <= RELATIVE, worst
        if f"grad_norms_{case}" in info:
            assert_norms(info, info[f"grad_norms_{case}"], parameters, f"{kit.stem} {case}")
        else:
            held.missing.append(f"grad_norms_{case}")


def _gradient(parameters: dict[str, Tensor], official: str) -> Tensor | None:
    return None if official == "*" else parameters[from_official_name(official)].grad


def assert_norms(info: Described, official: Described, parameters: dict[str, Tensor], what: str) -> None:
    """Norms of the gradients by all parameters; none where a parameter has no effect."""
    norms = {from_official_name(key): value for key, value in official.items()}
    assert norms.keys() == parameters.keys()
    # parameters that a GroupNorm with one channel a group cancels have gradients of rounding errors
    assert all(CANCELLED.search(key) for key in info["insensitive_parameters"])
    cancelled = {from_official_name(key) for key in info["insensitive_parameters"]}
    found = {name: parameters[name].grad.norm().item() for name in norms}
    ratios = {name: abs(found[name] - norm) / norm for name, norm in norms.items() if name not in cancelled}
    logger.info(f"{what}: {len(ratios)} of {len(norms)} gradient norms, largest error {max(ratios.values()):.2e}")
    assert len(ratios) > 0.5 * len(norms)
    assert max(ratios.values()) <= 1e-3, max(ratios, key=lambda name: ratios[name])
    assert all(found[name] <= 1e-5 * max(norms.values()) for name in cancelled & found.keys())


@pytest.mark.parametrize("kit", KITS, ids=lambda kit: kit.stem)
def test_activations(kit: Path) -> None:
    _, tensors = read_kit(kit)
    unet, expected = build(kit, "perframe"), tensors.under("io.act.")
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
    layout = named_kit("unet_512_interp_keys.json")
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
    groups = named_kit("unet_512_param_groups.json")
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

    runs = named_kit("flops_512.json")["runs"]
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
