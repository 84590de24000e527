"""Steps without finite gradients leave no trace in the weights, and are written down."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from rank_program import NumberedBatches, tiny_network
from torch import Tensor

from reconx_pl.errors import BadDataError, ConfigurationError
from reconx_pl.training.callbacks.guards import FiniteGuard
from reconx_pl.training.ema import AverageConfig
from reconx_pl.training.gradients import clip_gradients, gradient_norm
from reconx_pl.training.module import ReconXModule
from reconx_pl.training.optimizer import OptimizerConfig
from reconx_pl.training.stages import Stage


class Watched(ReconXModule):
    """Spoils the loss of chosen batches, and keeps weights, moments and averages of every step."""

    spoiled: frozenset[int] = frozenset()
    kind = math.nan
    offset = 0.0  # of the loss alone: gradients stay finite

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        output = super().training_step(batch, batch_idx)
        if batch_idx not in self.spoiled:
            return output
        return output | {"loss": output["loss"] * self.kind + self.offset}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        optimizer = self.trainer.optimizers[0]
        moments = [value.clone() for state in optimizer.state.values() for value in state.values()]
        self.seen.append(([p.detach().clone() for p in self.parameters()], moments, self.trainer.global_step))


def fit(folder: Path, spoiled: set[int], steps: int = 4, kind: float = math.nan, **options: Any) -> Watched:
    module = Watched(tiny_network(), Stage.structure, OptimizerConfig(lr=1e-3), ema=AverageConfig(decay=0.5))
    module.spoiled, module.kind, module.seen = frozenset(spoiled), kind, []
    module.offset = options.pop("offset", 0.0)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        limit_val_batches=0,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=0.3,
        callbacks=[FiniteGuard(patience=options.pop("patience", 10))],
        **options,
    )
    trainer.fit(module, NumberedBatches())
    return module


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("kind", "offset"), [(math.nan, 0.0), (math.inf, 0.0), (1.0, math.inf)])
def test_a_bad_step_changes_nothing_but_the_count(tmp_path: Path, kind: float, offset: float) -> None:
    module = fit(tmp_path, {2}, kind=kind, offset=offset)
    weights, moments, steps = zip(*module.seen, strict=True)
    assert steps == (1, 2, 3, 4)
    assert same(weights[1], weights[2]) and same(moments[1], moments[2])  # averages are among the parameters
    assert not same(weights[2], weights[3]) and not same(moments[2], moments[3])
    assert all(bool(torch.isfinite(p).all()) for p in weights[3])
    (written,) = (tmp_path / "nonfinite").iterdir()
    assert json.loads(written.read_text())["clips"] == ["clip2a", "clip2b"]


def test_accumulated_batches_are_named_together(tmp_path: Path) -> None:
    fit(tmp_path, {3}, steps=2, accumulate_grad_batches=2)
    (written,) = (tmp_path / "nonfinite").iterdir()
    assert json.loads(written.read_text())["clips"] == ["clip2a", "clip2b", "clip3a", "clip3b"]


def test_too_many_in_a_row_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match=r"3 steps in a row.*nonfinite"):
        fit(tmp_path, {1, 3, 4, 5}, steps=8, patience=3)
    assert len(list((tmp_path / "nonfinite").iterdir())) == 4


def test_gradients_are_clipped_as_torch_clips_them() -> None:
    generator = torch.Generator().manual_seed(0)
    own, theirs = ([torch.nn.Parameter(torch.zeros(n)) for n in (2, 3, 4)] for _ in range(2))
    for largest in (0.1, 100.0):
        for mine, other in zip(own, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        clip_gradients(torch.optim.SGD(own), largest)
        torch.nn.utils.clip_grad_norm_(theirs, largest)
        assert all(torch.equal(m.grad, o.grad) for m, o in zip(own, theirs, strict=True))  # type: ignore[arg-type]


def test_patience_is_positive() -> None:
    with pytest.raises(ConfigurationError, match="patience"):
        FiniteGuard(0)


def test_the_norm_is_that_of_all_gradients() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(n)) for n in (2, 3, 4)]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0, 0.0])
    assert float(gradient_norm(torch.optim.SGD(parameters))) == pytest.approx(5.0)
