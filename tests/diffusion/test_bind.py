"""The model with its conditions bound: the same predictions, the conditions' keys and values computed once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from reconx_pl.diffusion.attention import DualCrossAttention
from reconx_pl.diffusion.conditioning.conditions import Conditions
from reconx_pl.diffusion.model import ReconXDiffusion
from reconx_pl.diffusion.pipeline import SamplingConfig, SamplingPipeline

FRAMES, SIDE = 3, 8


def conditions(network: ReconXDiffusion, batch: int) -> Conditions:
    g = torch.Generator().manual_seed(1)
    views = torch.rand(batch, 2, 3, SIDE, SIDE, generator=g)
    latents = network.encode(views)
    points = torch.randn(batch, 32, 3, generator=g)
    fps = torch.full((batch,), 8.0)
    return network.conditions(views[:, 0], latents[:, :, 0], latents[:, :, 1], fps, FRAMES, points)


KEEPS = {
    "all": None,
    "tail": [False, False, True],
    "none": [False, False, False],
    "scattered": [True, False, True],
}


@torch.no_grad()
@pytest.mark.parametrize("keep", KEEPS.values(), ids=KEEPS)
def test_bound_equals_forward(network: ReconXDiffusion, keep: list[bool] | None) -> None:
    given = replace(conditions(network, 3), structure_keep=None if keep is None else torch.tensor(keep))
    x, t = torch.randn(3, 12, FRAMES, 4, 4, generator=torch.Generator().manual_seed(2)), torch.tensor([5, 500, 999])
    torch.testing.assert_close(network.bind(given)(x, t), network(x, t, given))
    if keep is not None and any(keep):  # the structure condition does act
        assert not torch.allclose(network(x, t, given), network(x, t, given.without_structure()))


def test_keys_and_values_are_computed_once_for_all_steps(network: ReconXDiffusion) -> None:
    calls: Counter[str] = Counter()
    for layer in network.unet.modules():
        if isinstance(layer, DualCrossAttention):
            for name in ("to_q", "to_k", "to_v_ip", "to_k_structure"):
                getattr(layer, name).register_forward_hook(lambda *_, name=name: calls.update([name]))
    layers = sum(1 for _ in network.unet.cross_attention())
    view_generator = SamplingPipeline(
        network, SamplingConfig(num_inference_steps=4, guidance_scale=2.0, structure_guidance_scale=3.0)
    )
    views, points = torch.rand(1, 2, 3, SIDE, SIDE), torch.randn(1, 32, 3)
    view_generator.generate_views(views, torch.tensor([8.0]), FRAMES, points, ["clip"], [""])
    assert calls == {"to_q": 4 * layers, "to_k": layers, "to_v_ip": layers, "to_k_structure": layers}


def test_batched_and_sequential_guidance_generate_the_same(network: ReconXDiffusion) -> None:
    generated = []
    for batched in (True, False):
        config = SamplingConfig(
            num_inference_steps=3, eta=0.0, guidance_scale=2.0, structure_guidance_scale=3.0, batched=batched
        )
        views, points = (
            torch.rand(1, 2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(4)),
            torch.ones(1, 32, 3),
        )
        points = points + torch.arange(32.0)[None, :, None] / 7
        generated.append(
            SamplingPipeline(network, config).generate_views(
                views, torch.tensor([8.0]), FRAMES, points, ["clip"], [""], torch.Generator().manual_seed(5)
            )
        )
    torch.testing.assert_close(generated[0], generated[1], atol=1e-4, rtol=1e-4)


def test_a_model_in_bfloat16_generates(network: ReconXDiffusion) -> None:
    view_generator = SamplingPipeline(network.to(torch.bfloat16), SamplingConfig(num_inference_steps=2))
    points = torch.randn(1, 32, 3, generator=torch.Generator().manual_seed(6))
    frames = view_generator.generate_views(
        torch.rand(1, 2, 3, SIDE, SIDE), torch.tensor([8.0]), FRAMES, points, ["clip"], [""]
    )
    assert frames.dtype == torch.float32 and bool(torch.isfinite(frames).all())
