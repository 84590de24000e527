"""Guidance: the formula, the branches it skips, batched against sequential, the rescale."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from reconx_pl.diffusion.conditioning.conditions import Conditions
from reconx_pl.diffusion.sampling.guidance import ConditionSets, Guidance, rescale_guidance
from reconx_pl.errors import ConfigurationError


class _Model:
    """Depends on every condition, each in its own way; counts samples and calls."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, c: Conditions) -> Tensor:
        self.batches.append(len(x))
        value = c.text_tokens.mean((1, 2)) + 2 * c.image_tokens.flatten(1).mean(1) + t
        if c.structure_tokens is not None:
            keep = torch.ones(len(x), dtype=torch.bool) if c.structure_keep is None else c.structure_keep
            value = value + 5 * keep * c.structure_tokens.mean((1, 2))
        return x * 0.5 + value.view(-1, 1, 1, 1, 1) + c.concat_latents


@pytest.fixture
def sets() -> ConditionSets:
    g = torch.Generator().manual_seed(0)
    full = Conditions(
        text_tokens=torch.randn(2, 7, 4, generator=g),
        image_tokens=torch.randn(2, 3, 2, 4, generator=g),
        fps=torch.tensor([5.0, 7.0]),
        concat_latents=torch.randn(2, 4, 3, 2, 2, generator=g),
        structure_tokens=torch.randn(2, 6, 4, generator=g),
    )
    return ConditionSets.from_full(full, torch.zeros(1, 7, 4), torch.zeros(1, 3, 2, 4))


def guided(guidance: Guidance, model: _Model, sets: ConditionSets) -> Tensor:
    return guidance.denoiser(lambda conditions: lambda x, t: model(x, t, conditions), sets)(X, T)


X = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(1))
T = torch.tensor([3, 900])


def test_null_and_view_sets_lose_what_they_should(sets: ConditionSets) -> None:
    assert sets.view.structure_tokens is None and sets.null.structure_tokens is None
    assert torch.equal(sets.view.text_tokens, sets.full.text_tokens)
    assert not sets.null.text_tokens.any() and not sets.null.image_tokens.any()
    assert torch.equal(sets.null.concat_latents, sets.full.concat_latents)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(
    ("view", "structure"), [(7.5, 3.0), (2.0, 2.0), (1.0, 4.0), (3.0, 0.0), (1.0, 1.0), (1.0, 0.0)]
)
def test_formula(sets: ConditionSets, view: float, structure: float, batched: bool) -> None:
    e_0, e_view, e_full = (_Model()(X, T, c) for c in (sets.null, sets.view, sets.full))
    expected = e_0 + view * (e_view - e_0) + structure * (e_full - e_view)
    ours = guided(Guidance(view, structure, guidance_rescale=0.0, batched=batched), _Model(), sets)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("view", "structure", "guidance_rescale", "branches"),
    [
        (7.5, 3.0, 0.7, ("null", "view", "full")),
        (7.5, 7.5, 0.7, ("null", "full")),
        (1.0, 4.0, 0.7, ("view", "full")),
        (1.0, 1.0, 0.7, ("full",)),
        (1.0, 0.0, 0.0, ("view",)),
        (1.0, 0.0, 0.7, ("view", "full")),
        (0.0, 0.0, 0.0, ("null",)),
        (4.0, 0.0, 0.0, ("null", "view")),
    ],
)
def test_only_needed_branches_run(
    sets: ConditionSets, view: float, structure: float, guidance_rescale: float, branches: tuple[str, ...]
) -> None:
    for batched, batches in ((True, [2 * len(branches)]), (False, [2] * len(branches))):
        model, guidance = _Model(), Guidance(view, structure, guidance_rescale, batched)
        guided(guidance, model, sets)
        assert guidance.branches() == branches
        assert model.batches == batches


def test_without_structure_it_is_the_base_models_guidance(sets: ConditionSets) -> None:
    plain = ConditionSets(null=sets.null, view=sets.view, full=sets.view)
    e_0, e_view = _Model()(X, T, plain.null), _Model()(X, T, plain.view)
    model = _Model()
    ours = guided(Guidance(7.5, 3.0, guidance_rescale=0.0), model, plain)
    torch.testing.assert_close(ours, e_0 + 7.5 * (e_view - e_0), atol=1e-4, rtol=1e-5)
    assert model.batches == [4]
    only = _Model()
    torch.testing.assert_close(guided(Guidance(1.0, 3.0), only, plain), e_view)
    assert only.batches == [2]


def test_structure_kept_by_some_samples_only(sets: ConditionSets) -> None:
    full = replace(sets.full, structure_keep=torch.tensor([True, False]))
    some = replace(sets, full=full)
    batched = guided(Guidance(2.0, 3.0, batched=True), _Model(), some)
    torch.testing.assert_close(batched, guided(Guidance(2.0, 3.0, batched=False), _Model(), some), atol=1e-4, rtol=1e-5)


def test_rescale_brings_back_the_spread_of_the_conditional() -> None:
    g = torch.Generator().manual_seed(2)
    guided, conditional = 5 * torch.randn(3, 4, 2, 8, 8, generator=g) + 1, torch.randn(3, 4, 2, 8, 8, generator=g)
    full = rescale_guidance(guided, conditional, 1.0)
    torch.testing.assert_close(full.flatten(1).std(1), conditional.flatten(1).std(1))
    half = rescale_guidance(guided, conditional, 0.5)
    torch.testing.assert_close(half, (guided + full) / 2)


def test_rescale_of_a_model_that_predicts_zero_is_zero() -> None:
    zero = torch.zeros(2, 4, 1, 2, 2)
    assert torch.equal(rescale_guidance(zero, zero, 0.7), zero)


@pytest.mark.parametrize(
    "options", [{"guidance_scale": -1.0}, {"structure_guidance_scale": -1.0}, {"guidance_rescale": 1.5}]
)
def test_guidance_options_are_checked(options: dict) -> None:
    with pytest.raises(ConfigurationError):
        Guidance(**options)
