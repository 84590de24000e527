"""Text tokens: causality of the encoder, the learned stand-in, missing weights."""

from __future__ import annotations

import pytest
import torch

from reconx_pl.diffusion.conditioning.dropout import drop_tokens
from reconx_pl.diffusion.conditioning.text_tokens import ClipTextConfig, ClipTextTokens, LearnedTextTokens, tokenize
from reconx_pl.errors import ConfigurationError, MissingWeightsError

TINY = ClipTextConfig(width=32, heads=4, layers=3, embed_dim=24)


def test_clip_text_encoder_is_causal_and_frozen() -> None:
    model = ClipTextTokens(TINY, random_init=True)
    out = model(["a room with a red sofa", "a room with a blue sofa", ""])
    assert out.shape == (3, 77, 32) and not out.requires_grad
    # start, a, room, with, a, then red or blue: tokens before the difference are alike
    torch.testing.assert_close(out[0, :5], out[1, :5], atol=1e-6, rtol=0)
    assert (out[0, 5:] - out[1, 5:]).abs().max() > 1e-3
    torch.testing.assert_close(model.null(), out[2:], atol=1e-5, rtol=0)


def test_penultimate_differs_from_last() -> None:
    torch.manual_seed(0)
    model = ClipTextTokens(TINY, random_init=True)
    penultimate = model(["a"])
    model.layer = "last"
    assert (model(["a"]) - penultimate).abs().max() > 1e-3


def test_long_captions_are_cut_and_end_with_the_end_mark() -> None:
    tokens = tokenize(["very " * 200, "a"])
    assert tokens.shape == (2, 77) and tokens.dtype == torch.int64
    assert tokens[0, 0] == 49406 and tokens[0, -1] == 49407
    assert tokens[1, 3:].sum() == 0


def test_learned_tables_take_part_in_every_step() -> None:
    model = LearnedTextTokens(tokens=77, width=16)
    tokens = model(["a", "b", ""])
    assert tokens.shape == (3, 77, 16) and model.width == 16
    assert torch.equal(tokens[0], tokens[2]) and not torch.equal(tokens[:1], model.null())
    # nothing is dropped in this batch: both tables still get a gradient, as data-parallel training needs
    drop_tokens(tokens, model.null(), torch.zeros(3, dtype=torch.bool)).sum().backward()
    assert model.caption.grad is not None and model.empty.grad is not None
    assert not model.empty.grad.any()


def test_bad_options() -> None:
    with pytest.raises(MissingWeightsError, match=r"weights=<file>.*LearnedTextTokens"):
        ClipTextTokens(TINY)
    with pytest.raises(ConfigurationError):
        ClipTextTokens(TINY, random_init=True, layer="first")
    with pytest.raises(ConfigurationError):
        ClipTextConfig(width=30, heads=4)
    with pytest.raises(ConfigurationError):
        LearnedTextTokens(width=0)
