"""Image tokens: shapes, sizes, the null image, what is frozen and what is trained."""

from __future__ import annotations

import pytest
import torch

from reconx_pl.diffusion.conditioning.image_tokens import (
    ClipImageTokens,
    ClipVisionConfig,
    ClipVisionEncoder,
    SmallImageConfig,
    SmallImageTokens,
    preprocess,
)
from reconx_pl.diffusion.conditioning.resampler import ResamplerConfig
from reconx_pl.errors import ConfigurationError, MissingWeightsError

VISION = ClipVisionConfig(image_size=56, patch_size=14, width=40, layers=2, head_width=10, embed_dim=24)
RESAMPLER = ResamplerConfig(
    dim=16, depth=1, dim_head=8, heads=2, num_queries=3, embedding_dim=40, output_dim=12, video_length=4
)
IMAGES = torch.rand(2, 3, 70, 90, generator=torch.Generator().manual_seed(0))


def test_clip_tokens_train_the_resampler_only() -> None:
    model = ClipImageTokens(VISION, RESAMPLER, random_init=True).train()
    tokens = model(IMAGES)
    assert tokens.shape == (2, 4, 3, 12)
    assert model.encoder(IMAGES).shape == (2, VISION.tokens, 40)
    tokens.square().sum().backward()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {"resampler"}
    assert not model.encoder.training and model.resampler.training


def test_null_is_a_grey_image_not_zero_tokens() -> None:
    model = ClipImageTokens(VISION, RESAMPLER, random_init=True)
    null = model.null(IMAGES)
    assert null.shape == (1, 4, 3, 12) and null.abs().max() > 0
    torch.testing.assert_close(null, model(torch.full((1, 3, 10, 20), 0.5)), atol=1e-5, rtol=0)


def test_clip_without_weights_says_where_to_get_them() -> None:
    with pytest.raises(MissingWeightsError, match=r"weights=<file>.*SmallImageTokens"):
        ClipVisionEncoder(VISION)
    with pytest.raises(ConfigurationError, match="width 41"):
        ClipImageTokens(VISION, ResamplerConfig(embedding_dim=41), random_init=True)
    with pytest.raises(ConfigurationError):
        ClipVisionConfig(patch_size=15)


def test_preprocessing_keeps_a_constant_and_stretches_to_a_square() -> None:
    grey = preprocess(torch.full((1, 3, 300, 500), 0.25))
    assert grey.shape == (1, 3, 224, 224)
    assert (grey.amax((2, 3)) - grey.amin((2, 3))).max() < 1e-5
    # a stripe in the right half stays in the right half: nothing is cropped
    striped = torch.zeros(1, 3, 300, 600)
    striped[..., 590:] = 1
    assert preprocess(striped)[..., -2:].mean() > preprocess(striped)[..., :200].mean() + 1


def test_small_encoder_is_small_trainable_and_a_drop_in() -> None:
    config = SmallImageConfig(frames=8, tokens_per_frame=4, width=64, image_size=64)
    model = SmallImageTokens(config)
    tokens = model(IMAGES)
    assert tokens.shape == (2, 8, 4, 64)
    (tokens * torch.randn_like(tokens)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert model.null(IMAGES).shape == (1, 8, 4, 64)
    assert sum(p.numel() for p in SmallImageTokens().parameters()) <= 1_000_000


def test_small_encoder_sees_where_things_are() -> None:
    torch.manual_seed(0)
    model = SmallImageTokens(SmallImageConfig(image_size=32))
    image = torch.zeros(1, 3, 32, 32)
    image[..., :16] = 1
    assert (model(image) - model(image.flip(-1))).abs().max() > 1e-3


@pytest.mark.parametrize("options", [{"image_size": 100}, {"channels": (32, 64, 96, 100)}])
def test_small_sizes_are_checked(options: dict) -> None:
    with pytest.raises(ConfigurationError):
        SmallImageConfig(**options)
