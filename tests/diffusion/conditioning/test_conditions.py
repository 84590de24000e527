"""Stacking, repeating, selecting and moving conditions."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from reconx_pl.diffusion.conditioning.conditions import Conditions
from reconx_pl.errors import ConfigurationError


def _conditions(batch: int, structure: bool, seed: int = 0) -> Conditions:
    g = torch.Generator().manual_seed(seed)
    return Conditions(
        text_tokens=torch.randn(batch, 7, 4, generator=g),
        image_tokens=torch.randn(batch, 3, 2, 4, generator=g),
        fps=25.5 + torch.arange(batch),
        concat_latents=torch.randn(batch, 4, 3, 2, 2, generator=g),
        structure_tokens=torch.randn(batch, 6, 4, generator=g) if structure else None,
        more_latents=torch.randn(batch, 5, 3, 2, 2, generator=g),
        base_latents=torch.randn(batch, 4, 3, 2, 2, generator=g),
    )


def test_parts_with_and_without_structure_stack() -> None:
    kept = replace(_conditions(2, True, 1), structure_keep=torch.tensor([True, False]))
    both = Conditions.cat([_conditions(1, False), kept, _conditions(1, True, 2)])
    assert len(both) == 4
    assert both.structure_keep is not None and both.structure_keep.tolist() == [False, True, False, True]
    assert both.structure_tokens is not None and not both.structure_tokens[0].any()
    assert torch.equal(both.text_tokens[1:3], kept.text_tokens)
    assert Conditions.cat([_conditions(1, False)] * 2).structure_tokens is None


def test_select_undoes_cat_and_repeat_tiles() -> None:
    a, b = _conditions(2, True, 1), _conditions(1, True, 2)
    stacked = Conditions.cat([a, b])
    first = stacked.select(torch.tensor([True, True, False]))
    second = stacked.select(torch.tensor([2]))
    twice = a.repeat(2)
    for item in fields(Conditions):
        if item.name == "structure_keep":
            continue
        assert torch.equal(getattr(first, item.name), getattr(a, item.name))
        assert torch.equal(getattr(second, item.name), getattr(b, item.name))
        assert torch.equal(getattr(twice, item.name), torch.cat([getattr(a, item.name)] * 2))


def test_latents_of_renders_are_in_all_parts_or_in_none() -> None:
    with pytest.raises(ConfigurationError, match="with and without latents of renders"):
        Conditions.cat([_conditions(1, False), replace(_conditions(1, False), base_latents=None)])


def test_casting_spares_frame_rate_and_mask() -> None:
    conditions = replace(_conditions(2, True), structure_keep=torch.tensor([True, False]))
    half = conditions.to("cpu", torch.bfloat16)
    assert half.text_tokens.dtype == half.concat_latents.dtype == torch.bfloat16
    assert half.more_latents is not None and half.more_latents.dtype == torch.bfloat16
    assert half.structure_tokens is not None and half.structure_tokens.dtype == torch.bfloat16
    assert torch.equal(half.fps, conditions.fps)
    assert half.structure_keep is not None and half.structure_keep.dtype == torch.bool
    assert half.without_structure().structure_tokens is None


def test_shapes_that_do_not_go_together() -> None:
    with pytest.raises(ConfigurationError, match="fps"):
        replace(_conditions(2, True), fps=torch.ones(3))
    with pytest.raises(ConfigurationError, match="boolean"):
        replace(_conditions(2, True), structure_keep=torch.ones(2))
    with pytest.raises(ConfigurationError, match="different shapes"):
        Conditions.cat([_conditions(1, False), replace(_conditions(1, False), text_tokens=torch.zeros(1, 5, 4))])
    with pytest.raises(ConfigurationError, match="no conditions"):
        Conditions.cat([])
