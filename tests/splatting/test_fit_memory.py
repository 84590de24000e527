"""The budget of memory: refused before anything is allocated, with numbers and the remedy."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from splat_scenes import ring_cameras

from reconx_pl.errors import ConfigurationError
from reconx_pl.splatting import fit_memory as memory
from reconx_pl.splatting.fit import FitConfig, fit
from reconx_pl.splatting.losses import LossWeights
from reconx_pl.types import PointCloud

CONFIG = FitConfig(steps=2, loss=LossWeights(lpips=0.0))


def _cloud(count: int) -> PointCloud:
    return PointCloud(
        torch.zeros(1, 3).expand(count, 3), torch.zeros(1, 3).expand(count, 3), torch.ones(1).expand(count)
    )


def test_refused_with_the_numbers_before_anything_is_allocated() -> None:
    need = memory.fit_memory(50_000_000, 3, 16, 16, CONFIG) / 2**30
    config = replace(CONFIG, max_memory=1.5)
    with pytest.raises(
        ConfigurationError, match=rf"50000000 points .*{need:.3g} GiB.* 1.5 GiB \(max_memory\)"
    ) as error:
        fit(torch.zeros(3, 3, 16, 16), ring_cameras(3, 16), None, _cloud(50_000_000), config)
    found = re.search(r"points\[:(\d+)\]", str(error.value))
    assert found is not None
    fitting = int(found[1])
    assert (
        memory.fit_memory(fitting, 3, 16, 16, CONFIG) <= 1.5 * 2**30 < memory.fit_memory(fitting + 1, 3, 16, 16, CONFIG)
    )
    memory.check_memory(fitting, 3, 16, 16, config, "cpu")


def test_without_a_budget_it_is_a_share_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**30)
    with pytest.raises(ConfigurationError, match=r"0.8 GiB \(80% of the 1.00 GiB free on cpu\)"):
        memory.check_memory(3_000_000, 2, 64, 64, CONFIG, "cpu")
    memory.check_memory(3_000_000, 2, 64, 64, replace(CONFIG, max_memory=16.0), "cpu")
    monkeypatch.setattr(memory, "free_memory", lambda device: None)
    memory.check_memory(3_000_000, 2, 64, 64, CONFIG, "cpu")


def test_frames_that_alone_are_too_many() -> None:
    with pytest.raises(ConfigurationError, match="400 frames of 1080 x 1920 alone take"):
        memory.check_memory(1000, 400, 1080, 1920, replace(CONFIG, max_memory=4.0), "cpu")


def test_what_counts() -> None:
    plain = memory.fit_memory(1000, 8, 128, 128, CONFIG)
    assert memory.fit_memory(1000, 8, 128, 128, replace(CONFIG, sh_degree=0)) < plain
    perceptual = replace(CONFIG, loss=LossWeights())
    whole = memory.fit_memory(1000, 8, 128, 128, perceptual)
    assert whole > memory.fit_memory(1000, 8, 128, 128, replace(perceptual, lpips_net="alex")) > plain
    assert plain < memory.fit_memory(1000, 8, 128, 128, replace(perceptual, lpips_crop=64)) < whole
    assert (
        memory.fit_memory(1000, 800, 128, 128, perceptual) - memory.fit_memory(1000, 800, 128, 128, CONFIG)
        < whole - plain + perceptual.lpips_memory
    )  # features of the targets are kept up to lpips_memory


def test_free_memory_is_read() -> None:
    free = memory.free_memory("cpu")
    assert free is None or 2**20 < free < 2**50
