"""Parts of the network are on the device while they work, and only then."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reconx_pl.diffusion.offload import resident
from reconx_pl.diffusion.pipeline import SamplingConfig, SamplingPipeline
from reconx_pl.errors import ConfigurationError


def test_parts_come_and_go() -> None:
    here, away = nn.Linear(2, 2), nn.Linear(2, 2)
    with resident("meta", None, away, None):
        assert away.weight.is_meta and not here.weight.is_meta
    assert away.weight.is_meta  # without a home it stays


def test_parts_go_home_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    part, moves = nn.Linear(2, 2), []
    monkeypatch.setattr(part, "to", moves.append)  # a meta tensor cannot come back: watch the orders instead
    with pytest.raises(RuntimeError, match="out of memory"), resident("meta", "cpu", part):
        assert moves == ["meta"]
        raise RuntimeError("out of memory")
    assert moves == ["meta", "cpu"]


def test_the_view_generator_has_one_part_at_work_at_a_time(network, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        part: name
        for name, part in network.named_children()
        if name in ("autoencoder", "image_tokens", "text_tokens", "structure_encoder", "unet")
    }
    present: set[str] = set()
    seen: dict[str, set[str]] = {}

    def moved(part: nn.Module, device: object) -> nn.Module:
        if part in names:
            (present.discard if device == "cpu" else present.add)(names[part])
        return part

    monkeypatch.setattr(nn.Module, "to", moved)
    for part, name in names.items():
        part.register_forward_pre_hook(lambda *_, name=name: seen.setdefault(name, set()).update(present))
    original = network.decode
    monkeypatch.setattr(network, "decode", lambda x: (seen.update(decode=set(present)), original(x))[1])
    view_generator = SamplingPipeline(network, SamplingConfig(num_inference_steps=2, offload=True), "cpu:0")
    points = torch.randn(1, 32, 3, generator=torch.Generator().manual_seed(6))
    view_generator.generate_views(torch.rand(1, 2, 3, 8, 8), torch.tensor([8.0]), 3, points, ["clip"], [""])
    assert seen["unet"] == {"unet"}
    assert seen["image_tokens"] == {"autoencoder", "image_tokens", "text_tokens", "structure_encoder"}
    assert seen["decode"] == {"autoencoder"}
    assert not present


def test_another_device_needs_offload(network) -> None:
    with pytest.raises(ConfigurationError, match=r"on cpu, generation on meta.*sampling\.offload"):
        SamplingPipeline(network, SamplingConfig(), "meta")
