"""What a run logs of itself is what the run was."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from rank_program import NumberedBatches, numbered_batch, tiny_network
from tiny_run import logged
from torch.utils.flop_counter import FlopCounterMode

from reconx_pl.errors import ConfigurationError
from reconx_pl.training.module import OptimizerConfig, ReconXModule
from reconx_pl.training.observe import ObserveCallback
from reconx_pl.training.stages import Stage


class Kept(L.Callback):
    def __init__(self) -> None:
        self.outputs: list[dict[str, torch.Tensor]] = []
        self.gates: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.outputs.append({name: value.detach().clone() for name, value in outputs.items()})
        named = pl_module.network.unet.named_parameters()
        self.gates.append({n: math.tanh(float(p.detach())) for n, p in named if n.endswith("structure_gate")})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Kept]:
    folder, kept = tmp_path_factory.mktemp("observed"), Kept()
    module = ReconXModule(tiny_network(checkpointing=False), Stage.structure, OptimizerConfig(lr=1e-2))
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=6,
        limit_val_batches=0,
        log_every_n_steps=3,
        logger=TensorBoardLogger(str(folder), name="run", version=""),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[kept, ObserveCallback(ranges=4)],
    )
    trainer.fit(module, NumberedBatches())
    return folder / "run", kept


def test_losses_by_diffusion_step(run: tuple[Path, Kept]) -> None:
    folder, kept = run
    low, high = logged(folder, "loss_by_step/000-249"), logged(folder, "loss_by_step/250-499")
    t = torch.cat([output["t"] for output in kept.outputs[3:]])
    losses = torch.cat([output["per_sample"] for output in kept.outputs[3:]])
    assert sorted(t.tolist()) == [133, 177, 256, 336, 354, 366]  # both ranges, and no other
    assert low[5] == pytest.approx(float(losses[t < 250].mean()), rel=1e-5)
    assert high[5] == pytest.approx(float(losses[t >= 250].mean()), rel=1e-5)
    assert 5 not in logged(folder, "loss_by_step/500-749")  # what it was three steps before is not said again


def test_gates_of_every_layer(run: tuple[Path, Kept]) -> None:
    folder, kept = run
    for name, value in kept.gates[-1].items():
        layer = name.removesuffix(".attn2.structure_gate").replace(".transformer_blocks", "")
        assert logged(folder, f"gates/{layer}")[5] == pytest.approx(value, rel=1e-5)
    assert len(kept.gates[-1]) == 4 and any(value for value in kept.gates[-1].values())


def test_memory_and_work_are_plausible(run: tuple[Path, Kept]) -> None:
    folder, _ = run
    assert 0.1 < logged(folder, "memory/peak_gib")[5] < 64
    assert 0 < logged(folder, "compute/utilisation")[5] < 1.5
    assert logged(folder, "compute/tflops")[5] > 0


@pytest.mark.parametrize("stage", [Stage.structure, Stage.image_attention])
def test_operations_are_those_of_a_step_forward_and_backward(tmp_path: Path, stage: Stage) -> None:
    watch = ObserveCallback()
    module = ReconXModule(tiny_network(checkpointing=True), stage, OptimizerConfig(lr=1e-3))
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=2,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[watch],
    )
    trainer.fit(module, NumberedBatches())
    unet = ReconXModule(tiny_network(checkpointing=False), stage).network.unet  # frozen layers cost no gradients
    calls: list[tuple[Any, Any]] = []
    module.network.unet.register_forward_pre_hook(lambda _, args, given: calls.append((args, given)), with_kwargs=True)
    uses = stage is Stage.structure
    module.network.loss(numbered_batch(0), torch.Generator().manual_seed(0), structure=uses)
    args, given = calls[0]
    with FlopCounterMode(display=False) as counter:
        unet(*args, **given).sum().backward(inputs=[p for p in unet.parameters() if p.requires_grad])
    assert watch._operations == pytest.approx(counter.get_total_flops(), rel=0.02)  # less what goes on to the tokens
    assert watch._operations >= counter.get_total_flops()


def test_ranges_are_checked() -> None:
    with pytest.raises(ConfigurationError, match="ranges"):
        ObserveCallback(ranges=0)
