"""Blocks are captured whole by ``torch.compile``, forward and backward, and compute the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reconx_pl.diffusion.config import UNetConfig
from reconx_pl.diffusion.unet import UNet

CONFIG = UNetConfig(
    in_channels=8,
    out_channels=4,
    model_channels=64,
    channel_mult=(1,),
    num_res_blocks=1,
    attention_strides=(1,),
    num_head_channels=32,
    context_dim=16,
    dropout=0.0,
    activation_checkpointing=("residual",),
)


def outcome(unet: UNet, x: Tensor, tokens: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    unet.zero_grad()
    output = unet(x, torch.tensor([400]), **tokens)
    output.square().mean().backward()
    return output.detach(), {name: p.grad.clone() for name, p in unet.named_parameters() if p.grad is not None}


@pytest.fixture(autouse=True)
def fresh_compiler():
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = limit


def test_compiled_blocks_compute_the_same() -> None:
    torch.manual_seed(0)
    unet = UNet(CONFIG)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    x = torch.randn(1, 8, 2, 4, 4)
    tokens = {
        "text_tokens": torch.randn(1, 5, 16),
        "image_tokens": torch.randn(1, 2, 3, 16),
        "structure_tokens": torch.randn(1, 6, 16),
    }
    expected, gradients = outcome(unet, x, tokens)
    torch._dynamo.utils.counters.clear()
    unet.compile_blocks("aot_eager")  # posed scenes both directions, generates no code
    found, compiled = outcome(unet, x, tokens)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 3  # residual, spatial, temporal
    assert not torch._dynamo.utils.counters["graph_break"]
    torch.testing.assert_close(found, expected)
    assert compiled.keys() == gradients.keys() == dict(unet.named_parameters()).keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(compiled[name], gradient, msg=name)
    with torch.inference_mode():  # as the view generator runs it
        projected = unet(x, torch.tensor([400]), projections=unet.project(**tokens))
    torch.testing.assert_close(projected, expected)
    assert unet.state_dict().keys() == UNet(CONFIG).state_dict().keys()  # weights keep their names
