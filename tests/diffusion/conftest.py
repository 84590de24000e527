"""A small model whose every condition acts."""

from __future__ import annotations

import pytest
import torch

from reconx_pl.diffusion.autoencoder import PixelUnshuffleAutoencoder
from reconx_pl.diffusion.conditioning.image_tokens import SmallImageConfig, SmallImageTokens
from reconx_pl.diffusion.conditioning.structure import StructureEncoderConfig
from reconx_pl.diffusion.conditioning.text_tokens import LearnedTextTokens
from reconx_pl.diffusion.config import UNetConfig
from reconx_pl.diffusion.model import ReconXDiffusion

FRAMES, WIDTH = 3, 16


@pytest.fixture
def network() -> ReconXDiffusion:
    torch.manual_seed(0)
    network = ReconXDiffusion(
        UNetConfig(
            in_channels=24,
            out_channels=12,
            model_channels=64,
            channel_mult=(1, 1),
            num_res_blocks=1,
            attention_strides=(1,),
            num_head_channels=16,
            context_dim=WIDTH,
        ),
        PixelUnshuffleAutoencoder(2),
        SmallImageTokens(SmallImageConfig(frames=FRAMES, width=WIDTH, image_size=32, channels=(8, 8, 8, 8))),
        LearnedTextTokens(4, WIDTH),
        StructureEncoderConfig(points=32, tokens=5, width=WIDTH),
    )
    with torch.no_grad():
        for name, parameter in network.unet.named_parameters():
            if name.endswith("structure_gate"):
                parameter.fill_(0.7)
            else:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return network.eval()
