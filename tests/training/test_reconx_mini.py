"""The model that comes with the package: its file and card, and what it generates."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
import yaml
from torch import Tensor

from benchmarks.condition_alone import ConditionAlone
from reconx_pl.data.procedural import procedural_clip
from reconx_pl.diffusion.weights.generation import ClipDefaults
from reconx_pl.files.checksums import file_sha256
from reconx_pl.files.weights import SHIPPED
from reconx_pl.metrics.image import psnr
from reconx_pl.pretrained.inventory import chosen, examine
from reconx_pl.reconstruction.view_generator import blind
from reconx_pl.training.models import find_model
from reconx_pl.types import Clip

MINI = SHIPPED["reconx-mini"]
HELD_OUT = 31_000_000  # a seed that no training saw


@cache
def scene() -> Clip:
    return procedural_clip(HELD_OUT, 8, (64, 64), points=2048, gap=2.0, variety="estimated")


@cache
def generated(precision: str) -> Tensor:
    found = find_model("reconx-mini")
    pipeline = found.load(replace(found.sampling, precision=precision))
    return pipeline.generate(blind(scene(), scene().cameras), torch.Generator().manual_seed(0))


def test_it_is_small_whole_and_has_a_card_with_a_licence() -> None:
    assert MINI.stat().st_size <= 20e6
    recorded = MINI.with_name(f"{MINI.name}.sha256").read_text().split()
    assert recorded == [file_sha256(MINI), MINI.name]
    (listed,) = chosen(["reconx-mini"])
    assert examine(listed).status == "verified" and listed.licence == "Apache-2.0"
    front = yaml.safe_load(MINI.with_suffix(".md").read_text().split("---\n")[1])
    assert front["license"] == "apache-2.0"


def test_it_says_what_it_generates_and_how() -> None:
    found = find_model("reconx-mini")
    assert found.clip == ClipDefaults(8, 256, 256, 8.0) and found.follows_cameras
    assert found.sampling.num_inference_steps == 1 and found.sampling.precision == "auto"
    assert found.identity(found.sampling).startswith("reconx-mini, weights ")


def test_what_it_generates_is_nearer_to_the_truth_than_what_it_sees() -> None:
    """Than the mean of its renders: what a network that predicts nothing would generate."""
    truth, config = scene().images[1:-1], find_model("reconx-mini").load().network.render
    assert config is not None
    condition = ConditionAlone(config, 4).generate(blind(scene(), scene().cameras), torch.Generator())[1:-1]
    gain = float((psnr(generated("32")[1:-1], truth) - psnr(condition, truth)).mean())
    assert gain > 0.5, gain


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_the_same_call_gives_the_same_bytes(precision: str) -> None:
    again = generated.__wrapped__(precision)
    assert torch.equal(generated(precision), again)


def test_bfloat16_gives_the_same_pictures() -> None:
    assert (generated("32") - generated("bf16")).abs().mean() < 1 / 255
