"""Condition dropout: the shares it drops, its independence, and what replaces a dropped condition."""

from __future__ import annotations

import pytest
import torch

from reconx_pl.diffusion.conditioning.dropout import DropoutConfig, draw_dropout, drop_images, drop_tokens
from reconx_pl.errors import ConfigurationError


def test_shares() -> None:
    dropped = draw_dropout(200_000, torch.Generator().manual_seed(0))

    def share(mask: torch.Tensor) -> float:
        return mask.float().mean().item()

    assert share(dropped.text & ~dropped.image) == pytest.approx(0.05, abs=0.003)
    assert share(dropped.text & dropped.image) == pytest.approx(0.05, abs=0.003)
    assert share(~dropped.text & dropped.image) == pytest.approx(0.05, abs=0.003)
    assert share(dropped.structure) == pytest.approx(0.1, abs=0.003)
    assert share(dropped.structure & dropped.text) == pytest.approx(0.01, abs=0.002)


def test_same_generator_same_masks_and_zero_drops_nothing() -> None:
    first, second = (draw_dropout(64, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.text, second.text) and torch.equal(first.structure, second.structure)
    none = draw_dropout(64, torch.Generator().manual_seed(3), DropoutConfig(0.0, 0.0))
    assert not (none.text.any() or none.image.any() or none.structure.any())
    assert draw_dropout(64, torch.Generator().manual_seed(3), DropoutConfig(structure=1.0)).structure.all()


def test_replacements() -> None:
    mask = torch.tensor([True, False])
    images = torch.rand(2, 3, 4, 4)
    grey = drop_images(images, mask)
    assert torch.equal(grey[0], torch.full((3, 4, 4), 0.5)) and torch.equal(grey[1], images[1])
    tokens, null = torch.rand(2, 7, 4), torch.rand(1, 7, 4)
    dropped = drop_tokens(tokens, null, mask)
    assert torch.equal(dropped[0], null[0]) and torch.equal(dropped[1], tokens[1])


@pytest.mark.parametrize("options", [{"probability": 0.4}, {"probability": -0.1}, {"structure": 1.1}])
def test_probabilities_are_checked(options: dict) -> None:
    with pytest.raises(ConfigurationError):
        DropoutConfig(**options)
