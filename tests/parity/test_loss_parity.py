"""The training objective against the reference's forward with a toy predictor, and its condition dropout rule."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_kits import Described, Held, described, golden_kits, not_held, read_kit
from torch import Tensor

from reconx_pl.diffusion.conditioning.dropout import DropoutConfig, dropped_at
from reconx_pl.diffusion.sampling.objective import diffusion_loss
from reconx_pl.diffusion.sampling.schedule import NoiseSchedule, ScheduleConfig

LOSS_KITS = golden_kits("loss_*.json")
STEP_KITS = golden_kits("train_step_*.json")
# logvar, weights of the variational bound and of the plain loss: inert in the release, so a sum in the test
WEIGHTS = {"logvar": "logvar", "elbo": "original_elbo_weight", "simple": "l_simple_weight"}


def _cases() -> list[Any]:
    return [
        pytest.param(path, case, id=f"{path.stem}-{case}")
        for path in LOSS_KITS
        for case in described(path)["loss_dicts"]
    ]


def _weights(description: Described) -> dict[str, float]:
    """Of the case "weighted", which the kit describes in words."""
    text = description["formulas"]["weighted"]
    found = {ours: re.search(rf"{theirs}\s+(-?[\d.]+\d|\d+)", text) for ours, theirs in WEIGHTS.items()}
    if not all(found.values()):
        not_held(f"the weights of the case 'weighted' ({text})", description.kit)
    return {name: float(match[1]) for name, match in found.items() if match}


@pytest.mark.skipif(not LOSS_KITS, reason="needs the golden kits loss_*.json")
@pytest.mark.parametrize(("path", "case"), _cases())
def test_recorded_loss(path: Path, case: str) -> None:
    description, kit = read_kit(path)
    toy = description["toy_model"]
    schedule = NoiseSchedule(ScheduleConfig(rescale_end=None if case == "no_dynamic" else 0.7))
    x0, noise, t = kit["x0"], kit["noise"], kit["t"]
    seen: list[Tensor] = []

    def model(x: Tensor, steps: Tensor) -> Tensor:
        seen.append(x)
        return toy["a"] * x + toy["b"] * kit["cond"] + toy["c"] * (steps.float() / 1000).view(-1, 1, 1, 1, 1)

    result = diffusion_loss(model, schedule, x0, None, t=t, noise=noise)
    expected = description["loss_dicts"][case]
    if "val/loss_simple" in expected:
        assert float(result.loss) == pytest.approx(expected["val/loss_simple"], rel=1e-6)
    found = {
        "x_scaled": schedule.scaled(x0, t),
        "x_noisy": seen[0],
        "target_v": schedule.target(x0, noise, t),
        "loss_per_sample": result.per_sample,
    }
    with Held(kit) as held:
        for name, value in found.items():
            for _, theirs in held.of([f"{case}.{name}"]):
                torch.testing.assert_close(value, theirs, atol=1e-6, rtol=1e-6)
        if case == "weighted":
            weights, squared = _weights(description), result.per_sample
            logvar = torch.tensor(weights["logvar"])
            total = weights["simple"] * (squared / logvar.exp() + logvar).mean() + weights["elbo"] * squared.mean()
            assert float(total) == pytest.approx(expected["val/loss"], rel=1e-6)


@pytest.mark.skipif(not LOSS_KITS, reason="needs the golden kits loss_*.json")
@pytest.mark.parametrize("path", LOSS_KITS, ids=lambda path: path.stem)
def test_recovered_latent_and_noise(path: Path) -> None:
    _, kit = read_kit(path)
    x0, eps = NoiseSchedule().to_x0_eps(kit["dynamic.target_v"], kit["dynamic.x_noisy"], kit["t"])
    with Held(kit) as held:
        for _, expected in held.of(["x0_from_v"]):
            torch.testing.assert_close(x0, expected, atol=2e-6, rtol=1e-6)
        for _, expected in held.of(["eps_from_v"]):
            torch.testing.assert_close(eps, expected, atol=2e-6, rtol=1e-6)


@pytest.mark.skipif(not STEP_KITS, reason="needs the golden kits train_step_*.json")
@pytest.mark.parametrize("path", STEP_KITS, ids=lambda path: path.stem)
def test_condition_dropout_rule(path: Path) -> None:
    description = described(path)
    rows = description["dropped"]
    r = torch.tensor([row["r"] for row in rows])
    dropped = dropped_at(r, torch.ones_like(r), DropoutConfig(probability=description["uncond_prob"]))
    assert dropped.text.tolist() == [row["text"] == "null" for row in rows]
    assert dropped.image.tolist() == [row["image"] == "zero image" for row in rows]
    assert not dropped.structure.any()
