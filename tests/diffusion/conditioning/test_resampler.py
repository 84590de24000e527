"""The resampler's frame axis, and queries of a checkpoint for another number of frames."""

from __future__ import annotations

import pytest
import torch

from reconx_pl.diffusion.conditioning.resampler import Resampler, ResamplerConfig, adapt_latents
from reconx_pl.errors import ConfigurationError

CONFIG = ResamplerConfig(
    dim=16, depth=1, dim_head=8, heads=2, num_queries=3, embedding_dim=10, output_dim=12, video_length=4
)


def test_frame_axis() -> None:
    tokens = torch.randn(2, 5, 10, generator=torch.Generator().manual_seed(0))
    model = Resampler(CONFIG)
    out = model(tokens)
    assert out.shape == (2, 4, 3, 12)
    # frame major: swapping the query blocks of two frames swaps the frames
    with torch.no_grad():
        model.latents.copy_(model.latents.unflatten(1, (4, 3)).flip(1).flatten(1, 2))
    torch.testing.assert_close(model(tokens), out.flip(1), atol=1e-5, rtol=0)
    shared = Resampler(ResamplerConfig(**{**vars(CONFIG), "video_length": None}))
    assert shared(tokens).shape == (2, 3, 12)


def test_latents_for_another_number_of_frames() -> None:
    per_frame = torch.arange(4.0).view(4, 1, 1).expand(4, 3, 16)
    latents = per_frame.flatten(0, 1)[None]

    def frames(mode: str, count: int) -> list[float]:
        adapted = adapt_latents(latents, 3, count, mode)
        assert adapted.shape == (1, count * 3, 16)
        return adapted[0].unflatten(0, (count, 3))[:, 0, 0].tolist()

    assert frames("repeat", 8) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert frames("interpolate", 7) == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5, 3])
    assert frames("interpolate", 4) == frames("repeat", 4) == [0, 1, 2, 3]
    assert frames("repeat", 2) == [0, 2]
    with pytest.raises(ConfigurationError):
        adapt_latents(latents, 5, 8, "repeat")
    with pytest.raises(ConfigurationError):
        adapt_latents(latents, 3, 8, "nearest")


def test_sizes_are_checked() -> None:
    with pytest.raises(ConfigurationError, match="depth"):
        ResamplerConfig(depth=0)
