"""Behaviour of the U-Net: structure branch, image tokens, independence of samples, gradients, precision, messages."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from reconx_pl.diffusion import attention
from reconx_pl.diffusion.attention import DualCrossAttention, TemporalSelfAttention
from reconx_pl.diffusion.config import UNetConfig
from reconx_pl.diffusion.unet import UNet
from reconx_pl.diffusion.weights import STRUCTURE_PARAMETERS
from reconx_pl.errors import ConfigurationError

BATCH, FRAMES, SIDE, WIDTH = 2, 3, 4, 32
SMALL = UNetConfig(
    in_channels=8,
    out_channels=4,
    model_channels=64,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_strides=(1, 2),
    num_head_channels=16,
    context_dim=WIDTH,
    default_fps=10.0,
)


def perturb(unet: UNet, structure: bool = True) -> UNet:
    """Move every parameter off its initial value (zero-initialised layers block gradients), the gates too if wanted."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if name.endswith("structure_gate"):
                parameter.fill_(0.5 if structure else 0.0)
            else:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return unet


def small_unet(config: UNetConfig = SMALL, structure: bool = True) -> UNet:
    torch.manual_seed(0)
    return perturb(UNet(config), structure).eval()


def call(**changes: Any) -> dict[str, Any]:
    """Arguments of a forward call; ``changes`` replace some."""
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    arguments: dict[str, Any] = {
        "x": noise(BATCH, 8, FRAMES, SIDE, SIDE),
        "timesteps": torch.tensor([10, 700]),
        "text_tokens": noise(BATCH, 7, WIDTH),
        "image_tokens": noise(BATCH, FRAMES, 5, WIDTH),
        "fps": torch.tensor([10.0, 24.0]),
        "structure_tokens": noise(BATCH, 9, WIDTH),
    }
    return arguments | changes


@torch.no_grad()
def test_untrained_structure_branch_changes_nothing() -> None:
    unet = small_unet(structure=False)
    assert torch.equal(unet(**call()), unet(**call(structure_tokens=None)))
    assert torch.equal(unet(**call()), unet(**call(structure_keep=torch.tensor([True, False]))))


@torch.no_grad()
def test_structure_branch_acts_once_its_gate_opens() -> None:
    unet = small_unet()
    with_structure, without = unet(**call()), unet(**call(structure_tokens=None))
    assert (with_structure - without).abs().max() > 1e-3
    other_cloud = unet(**call(structure_tokens=call()["structure_tokens"].flip(2)))
    assert (with_structure - other_cloud).abs().max() > 1e-3


@torch.no_grad()
def test_structure_keep_switches_single_samples() -> None:
    unet = small_unet()
    with_structure, without = unet(**call()), unet(**call(structure_tokens=None))
    assert torch.equal(unet(**call(structure_keep=torch.tensor([False, False]))), without)
    mixed = unet(**call(structure_keep=torch.tensor([True, False])))
    torch.testing.assert_close(mixed[0], with_structure[0])
    assert torch.equal(mixed[1], without[1])


@torch.no_grad()
def test_samples_of_a_batch_do_not_touch_each_other() -> None:
    unet, arguments = small_unet(), call()
    before = unet(**arguments)
    changed = {
        name: torch.cat([value[:1], 2 * value[1:] + 1]) for name, value in arguments.items()
    }  # only the second sample
    after = unet(**changed)
    assert torch.equal(before[0], after[0])
    assert (before[1] - after[1]).abs().max() > 1e-3


@torch.no_grad()
def test_batch_equals_single_samples() -> None:
    unet, arguments = small_unet(), call()
    together = unet(**arguments)
    for sample in range(BATCH):
        alone = unet(**{name: value[sample : sample + 1] for name, value in arguments.items()})
        torch.testing.assert_close(alone[0], together[sample], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_every_condition_matters() -> None:
    unet, arguments = small_unet(), call()
    before = unet(**arguments)
    for name in ("timesteps", "fps", "text_tokens", "image_tokens", "structure_tokens"):
        after = unet(**call(**{name: arguments[name].flip(0)}))
        assert (before - after).abs().max() > 1e-4, name


@torch.no_grad()
def test_missing_fps_is_the_default() -> None:
    unet = small_unet()
    assert torch.equal(unet(**call(fps=None)), unet(**call(fps=torch.tensor([10.0, 10.0]))))


@torch.no_grad()
def test_image_tokens_shared_and_per_frame() -> None:
    unet = small_unet()
    shared = call()["image_tokens"][:, 0]  # [B, Q, D]
    repeated = shared[:, None].expand(-1, FRAMES, -1, -1)
    torch.testing.assert_close(unet(**call(image_tokens=shared)), unet(**call(image_tokens=repeated)))
    # as many shared tokens as frames x queries are still shared: the number of axes decides, not the length
    flat = call()["image_tokens"].flatten(1, 2)
    assert (unet(**call(image_tokens=flat)) - unet(**call())).abs().max() > 1e-3


@torch.no_grad()
def test_a_frames_tokens_reach_that_frame_alone_in_cross_attention() -> None:
    torch.manual_seed(0)
    unet = small_unet()
    layer = next(module for module in unet.modules() if isinstance(module, DualCrossAttention))
    seen: list[Tensor] = []
    layer.register_forward_hook(lambda module, args, out: seen.append(out))
    tokens = call()["image_tokens"]
    changed = tokens.clone()
    changed[:, 1] += 1.0
    unet(**call(image_tokens=tokens))
    unet(**call(image_tokens=changed))
    moved = (seen[0] - seen[1]).abs().amax(dim=(0, 2, 3))  # [T]
    assert moved[0] == 0 and moved[2] == 0 and moved[1] > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("max_heads", [65535, 7])
def test_temporal_attention_equals_attention_of_each_pixel(max_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The view trick (pixels counted as heads), whole and in pieces, against the plain formula, pixel by pixel."""
    monkeypatch.setattr(attention, "MAX_HEADS", max_heads)
    torch.manual_seed(0)
    batch, frames, pixels, heads, width = 2, 5, 6, 4, 8
    layer = TemporalSelfAttention(heads * width, heads, width)
    q, k, v = (torch.randn(batch, frames, pixels, heads * width) for _ in range(3))
    out = layer.attend(q, k, v)
    for pixel in range(pixels):
        per_head = [x[:, :, pixel].unflatten(-1, (heads, width)).transpose(1, 2) for x in (q, k, v)]
        weights = torch.softmax(per_head[0] @ per_head[1].mT / width**0.5, dim=-1)
        expected = (weights @ per_head[2]).transpose(1, 2).flatten(2)
        torch.testing.assert_close(out[:, :, pixel], expected)


@pytest.mark.parametrize("image_gate", [False, True])
def test_gradient_reaches_every_parameter(image_gate: bool) -> None:
    unet = small_unet(dataclasses.replace(SMALL, image_gate=image_gate))
    out = unet(**call())
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    dead = [name for name, parameter in unet.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not dead


def test_structure_branch_can_leave_its_start() -> None:
    """With the gate at 0 only the gate has a gradient, which is enough to open the branch."""
    unet = small_unet(structure=False)
    unet(**call()).square().sum().backward()
    for name, parameter in unet.named_parameters():
        if STRUCTURE_PARAMETERS.search(name):
            assert parameter.grad is not None
            assert bool(parameter.grad.any()) == name.endswith("structure_gate"), name


def test_a_new_model_predicts_zero_and_starts_as_documented() -> None:
    torch.manual_seed(0)
    unet = UNet(dataclasses.replace(SMALL, image_gate=True))
    zeros = [
        "fps_embedding.2.weight",
        "input_blocks.1.0.out_layers.3.weight",
        "input_blocks.1.0.temporal_conv.conv4.3.bias",
        "input_blocks.1.1.proj_out.weight",
        "input_blocks.1.2.proj_out.weight",
        "init_attn.0.proj_out.weight",
        "out.2.bias",
        "middle_block.1.transformer_blocks.0.attn2.alpha",
        "middle_block.1.transformer_blocks.0.attn2.structure_gate",
    ]
    parameters = dict(unet.named_parameters())
    for name in zeros:
        assert not parameters[name].any(), name
    assert not unet(**call()).any()


@pytest.mark.parametrize("checkpointed", [True, ("residual",), ("spatial", "temporal")])
def test_recomputed_activations_give_the_same_gradients(checkpointed: bool | tuple[str, ...]) -> None:
    """With dropout on: the recomputation must draw the same masks."""
    gradients = []
    for checkpointing in (False, checkpointed):
        unet = small_unet(dataclasses.replace(SMALL, activation_checkpointing=checkpointing)).train()
        torch.manual_seed(3)
        unet(**call()).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in unet.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


@pytest.mark.parametrize("kind", ["residual", "spatial", "temporal"])
def test_only_the_chosen_kind_of_block_runs_twice(kind: str) -> None:
    unet = small_unet(dataclasses.replace(SMALL, activation_checkpointing=(kind,)))
    runs = Counter()
    for block in unet.blocks():
        block.register_forward_pre_hook(lambda block, args: runs.update([(block.kind, id(block))]))
    unet(**call()).sum().backward()
    assert {(name, times) for (name, _), times in runs.items()} == {
        (name, 2 if name == kind else 1) for name in ("residual", "spatial", "temporal")
    }


@torch.no_grad()
def test_projections_give_what_the_tokens_give() -> None:
    unet, arguments = small_unet(), call()
    tokens = {name: arguments.pop(name) for name in ("text_tokens", "image_tokens", "structure_tokens")}
    expected = unet(**arguments, **tokens)
    projections = unet.project(**tokens)
    for layer in unet.cross_attention():
        layer.project = None  # nothing is projected again
    assert torch.equal(unet(**arguments, projections=projections), expected)
    with pytest.raises(ConfigurationError, match="for 3 frames, the latents have 2"):
        unet(**arguments | {"x": arguments["x"][:, :, :2]}, projections=projections)


@torch.no_grad()
def test_structure_of_the_last_samples_alone() -> None:
    unet, arguments = small_unet(), call()
    expected = unet(**arguments, structure_keep=torch.tensor([False, True]))
    tokens = {name: arguments.pop(name) for name in ("text_tokens", "image_tokens", "structure_tokens")}
    tokens["structure_tokens"] = tokens["structure_tokens"][1:]
    torch.testing.assert_close(unet(**arguments, projections=unet.project(**tokens)), expected)
    with pytest.raises(ConfigurationError, match="structure_tokens must be"):
        unet.project(**tokens | {"structure_tokens": torch.zeros(3, 9, WIDTH)})


def test_dropout_acts_only_in_training() -> None:
    unet = small_unet()
    with torch.no_grad():
        assert torch.equal(unet(**call()), unet(**call()))
        unet.train()
        assert (unet(**call()) - unet(**call())).abs().max() > 1e-4


def test_bfloat16_autocast_on_the_processor() -> None:
    unet = small_unet()
    exact = unet(**call())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = unet(**call())
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() < 0.1 * exact.abs().max()
    rounded.sum().backward()


def test_whole_model_in_bfloat16() -> None:
    unet = small_unet().to(torch.bfloat16)
    out = unet(**call(x=call()["x"].bfloat16()))
    assert out.dtype == torch.bfloat16 and torch.isfinite(out).all()


@pytest.mark.parametrize(("height", "width", "frames"), [(8, 4, 1), (4, 10, 5)])
def test_other_sizes(height: int, width: int, frames: int) -> None:
    with torch.no_grad():
        out = small_unet()(
            **call(x=torch.randn(BATCH, 8, frames, height, width), image_tokens=torch.randn(BATCH, frames, 2, WIDTH))
        )
    assert out.shape == (BATCH, 4, frames, height, width)


WRONG_CALLS = {
    "channels": ({"x": torch.zeros(BATCH, 4, FRAMES, SIDE, SIDE)}, r"\[B, 8, T, h, w\], got \(2, 4, 3, 4, 4\)"),
    "dimensions": ({"x": torch.zeros(BATCH, 8, SIDE, SIDE)}, r"got \(2, 8, 4, 4\)"),
    "sides": ({"x": torch.zeros(BATCH, 8, FRAMES, 4, 5)}, "4 x 5.*multiples of 2"),
    "frames": ({"image_tokens": torch.zeros(BATCH, 4, 5, WIDTH)}, "for 4 frames, the latents have 3"),
    "image axes": ({"image_tokens": torch.zeros(BATCH, WIDTH)}, r"image_tokens must be .* got \(2, 32\)"),
    "text width": ({"text_tokens": torch.zeros(BATCH, 7, 16)}, r"text_tokens .* D = 32, got \(2, 7, 16\)"),
    "structure batch": ({"structure_tokens": torch.zeros(1, 9, WIDTH)}, r"structure_tokens .* got \(1, 9, 32\)"),
    "steps": ({"timesteps": torch.tensor(3)}, r"timesteps must be \[2\]"),
    "fps": ({"fps": torch.zeros(3)}, r"fps must be \[2\].*got \(3,\)"),
    "keep": ({"structure_keep": torch.ones(1, dtype=torch.bool)}, r"structure_keep must be \[2\]"),
}


@pytest.mark.parametrize("wrong", WRONG_CALLS)
def test_shapes_that_do_not_fit_are_named(wrong: str) -> None:
    changes, message = WRONG_CALLS[wrong]
    with pytest.raises(ConfigurationError, match=message):
        small_unet()(**call(**changes))


def test_structure_tokens_need_the_branch() -> None:
    unet = small_unet(dataclasses.replace(SMALL, structure_guidance=False))
    with pytest.raises(ConfigurationError, match="structure_guidance=False"):
        unet(**call())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_channels": 48}, "48 channels.*multiple of 32"),
        ({"num_head_channels": 24}, "heads of 24"),
        ({"attention_strides": (1, 4)}, r"attention_strides \[4\] do not exist"),
        ({"channel_mult": ()}, "channel_mult is empty"),
        ({"channel_mult": (1, 0)}, "channel_mult must be at least 1"),
        ({"dropout": 1.0}, "dropout"),
        ({"default_fps": 0.0}, "default_fps"),
        ({"num_res_blocks": 0}, "num_res_blocks"),
        ({"activation_checkpointing": ("convolution",)}, r"residual, spatial, temporal.*\['convolution'\]"),
    ],
)
def test_contradictory_configurations_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_narrow_levels_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        dataclasses.replace(SMALL, model_channels=32)
    assert "do not see the time step" in caplog.text
    caplog.clear()
    dataclasses.replace(SMALL)
    assert not caplog.text


def test_demo_is_small_enough_to_train_on_a_processor() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        config = UNetConfig.demo()
        unet = UNet(config)
        tokens = torch.empty(1, 16, config.context_dim)
        with FlopCounterMode(display=False) as counter:
            x, steps = torch.empty(1, 384, 8, 16, 16), torch.empty(1)
            out = unet(x, steps, text_tokens=tokens, image_tokens=tokens, structure_tokens=tokens)
    assert out.shape == (1, 192, 8, 16, 16)
    assert 5e6 <= sum(parameter.numel() for parameter in unet.parameters()) <= 10e6
    assert counter.get_total_flops() < 10e9
