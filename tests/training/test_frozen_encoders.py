"""Pretrained frozen encoders in a training run: their precision, and that no checkpoint holds them."""

from __future__ import annotations

import pytest
import torch
from rank_program import numbered_batch, tiny_network
from torch import nn

from reconx_pl.diffusion.conditioning.frozen import FrozenModule
from reconx_pl.diffusion.conditioning.text_tokens import ClipTextConfig, ClipTextTokens
from reconx_pl.diffusion.model import ReconXDiffusion
from reconx_pl.training.module import ReconXModule


class Encoder(FrozenModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.freeze()


def network_with_encoders() -> ReconXDiffusion:
    pytest.importorskip("open_clip")
    network = tiny_network()
    config = ClipTextConfig(context_length=77, vocab_size=49408, width=32, heads=2, layers=2, embed_dim=32)
    network.text_tokens = ClipTextTokens(config, random_init=True)
    network.autoencoder.encoder = Encoder()
    return network


def test_clip_encoders_may_be_bfloat16_and_nothing_else_is() -> None:
    losses = []
    for frozen_encoder_precision in ("32", "bf16"):
        torch.manual_seed(0)
        module = ReconXModule(network_with_encoders(), frozen_encoder_precision=frozen_encoder_precision)
        halved = {name for name, p in module.named_parameters() if p.dtype == torch.bfloat16}
        assert halved == {
            n for n, _ in module.named_parameters() if "text_tokens" in n and frozen_encoder_precision == "bf16"
        }
        batch = numbered_batch(0)
        output = module.network.loss(batch, torch.Generator().manual_seed(0), drop=False)
        output.loss.backward()
        losses.append(float(output.loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]


def test_encoders_are_not_in_checkpoints_and_everything_else_must_be() -> None:
    network = tiny_network()
    network.image_tokens.encoder = Encoder()
    module = ReconXModule(network)
    state = module.state_dict()
    assert not any(".encoder." in name for name in state) and "network.image_tokens.position" in state
    assert "image_tokens.encoder.layer.weight" in network.state_dict()  # the network itself is whole
    encoder = network.image_tokens.encoder.layer.weight.clone()
    module.load_state_dict(state)
    assert torch.equal(network.image_tokens.encoder.layer.weight, encoder)
    module.load_state_dict(state | {"network.image_tokens.tower.layer.weight": encoder})  # as earlier versions wrote it
    del state["network.image_tokens.position"]
    with pytest.raises(RuntimeError, match="Missing key.*image_tokens.position"):
        module.load_state_dict(state)
    with pytest.raises(RuntimeError, match="Unexpected key.*novel"):
        module.load_state_dict(module.state_dict() | {"novel": encoder})
