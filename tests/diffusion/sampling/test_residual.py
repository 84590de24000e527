"""Weak residuals are taken for errors of the network."""

from __future__ import annotations

import pytest
import torch

from reconx_pl.diffusion.sampling.config import SamplingConfig
from reconx_pl.diffusion.sampling.residual import kept_renders
from reconx_pl.errors import ConfigurationError

BASE = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_residual_below_the_floor_leaves_the_renders_as_they_are() -> None:
    assert torch.equal(kept_renders(BASE + 0.05, BASE, 0.06), BASE)


def test_a_strong_residual_loses_the_share_of_the_floor_in_its_power() -> None:
    shrunk = kept_renders(BASE + 0.5, BASE, 0.1)
    torch.testing.assert_close(shrunk, BASE + 0.5 * (1 - 0.1**2 / 0.5**2))


def test_no_floor_changes_nothing() -> None:
    torch.testing.assert_close(kept_renders(BASE + 0.01, BASE, 0.0), BASE + 0.01)


def test_every_frame_and_place_is_judged_by_itself() -> None:
    latents = BASE.clone()
    latents[1, :, 2, :, 5:] += 0.5
    latents[1, :, 2, :, :2] += 0.05
    shrunk = kept_renders(latents, BASE, 0.06)
    changed = (shrunk != BASE).any(1)  # [B, T, h, w]
    assert changed[1, 2, :, 5:].all()
    assert not changed[1, 2, :, :4].any()
    assert not changed[0].any() and not changed[1, [0, 1, 3]].any()


def test_what_is_confirmed_all_around_stays_as_rendered() -> None:
    confirmed = torch.zeros(2, 4, 32, 32, dtype=torch.bool)
    confirmed[1, 2, :, :24] = True
    kept = kept_renders(BASE + 0.5, BASE, 0.0, confirmed)
    assert torch.equal(kept[1, :, 2, :, :5], BASE[1, :, 2, :, :5])
    torch.testing.assert_close(kept[1, :, 2, :, 7], BASE[1, :, 2, :, 7] + 0.5)
    torch.testing.assert_close(kept[1, :, 1], BASE[1, :, 1] + 0.5)


def test_a_floor_below_zero_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="residual_floor"):
        SamplingConfig(residual_floor=-0.1)
    with pytest.raises(ConfigurationError, match="splat_steps is at least 1"):
        SamplingConfig(splat_steps=0)
