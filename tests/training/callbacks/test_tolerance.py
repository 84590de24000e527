"""What happens beside training may fail; training goes on, on all ranks alike."""

from __future__ import annotations

import logging
import resource
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from rank_program import Job, NumberedBatches, attempt, numbered_batch, tiny_network
from tiny_run import logged
from torch.utils.data import DataLoader

from reconx_pl.data.datamodule import ShardDataModule
from reconx_pl.data.procedural import write_procedural
from reconx_pl.errors import OtherRankError
from reconx_pl.files.ranks import all_or_none
from reconx_pl.training.callbacks.safe_logger import SafeTensorBoardLogger
from reconx_pl.training.callbacks.tolerance import tolerated
from reconx_pl.training.module import ReconXModule
from reconx_pl.training.optimizer import OptimizerConfig
from reconx_pl.training.stages import Stage


class Fails(L.Callback):
    """Fails after validation, and leaves the module in eval mode."""

    @tolerated("generation")
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.eval()
        raise RuntimeError("no memory left")


class FailsToValidate(ReconXModule):
    """Cannot validate the second held-out batch."""

    def _held_out(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 1:
            raise RuntimeError("no memory left")
        return super()._held_out(batch, batch_idx)


class ThreeHeldOut(NumberedBatches):
    def val_dataloader(self) -> Any:
        return DataLoader([numbered_batch(10_000 + number) for number in range(3)], batch_size=None)


def trainer(folder: Path, steps: int = 3, **options: Any) -> L.Trainer:
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_steps": steps,
        "check_val_every_n_epoch": None,
        "val_check_interval": 1,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
        "logger": False,
    }
    return L.Trainer(**{**settings, **quiet, **options})


def module(kind: type[ReconXModule] = ReconXModule) -> ReconXModule:
    return kind(tiny_network(), Stage.structure, OptimizerConfig(lr=1e-3))


def test_a_callback_that_fails_after_validation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, own = trainer(tmp_path, callbacks=[Fails()]), module()
    run.fit(own, NumberedBatches())
    assert run.global_step == 3 and own.network.unet.training
    assert caplog.text.count("generation failed at step") == 3 and "no memory left" in caplog.text
    run.state.fn = TrainerFn.VALIDATING  # there it is what the run is for
    with pytest.raises(RuntimeError, match="no memory left"):
        Fails().on_validation_end(run, own)


def test_a_validation_step_that_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, own = trainer(tmp_path, 2), module(FailsToValidate)
    run.fit(own, ThreeHeldOut())
    assert run.global_step == 2 and "validation failed on clip10001a, clip10001b" in caplog.text
    expected = torch.stack([own._held_out(numbered_batch(10_000 + number), number).loss for number in (0, 2)]).mean()
    assert float(run.callback_metrics["val/loss"]) == pytest.approx(float(expected), rel=1e-5)  # of the other two
    run.state.fn = TrainerFn.VALIDATING
    with pytest.raises(RuntimeError, match="no memory left"):
        own.validation_step(numbered_batch(1), 1)


def test_held_out_shards_that_vanish(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("train", "val"):
        write_procedural(tmp_path / name, count=4, frames=2, size=(32, 32), points=16, clips_per_shard=2)
    data = ShardDataModule(str(tmp_path / "train"), str(tmp_path / "val"), points=16)

    class Counts(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.held_out: list[bool] = []

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            for shard in (tmp_path / "val").glob("*.tar"):
                shard.unlink()
            return self.weight * batch["frames"].float().mean()

        def validation_step(self, batch: Any, index: int) -> None:
            self.held_out.append(bool(batch))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    own = Counts()
    run = trainer(tmp_path, 2, num_sanity_val_steps=1)
    run.fit(own, data)
    assert own.held_out == [True] + 2 * [False] * 4  # the sanity check, and two validations of four batches
    assert "reading held-out clips failed after 0 of 4 batches" in caplog.text
    with pytest.raises(Exception, match="shard-000000"):
        run.validate(own, data, verbose=False)


def test_curves_have_a_gap_where_the_disk_was_full(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = SafeTensorBoardLogger(str(tmp_path), name="run", version="")
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    logger.log_metrics({"loss": 1.0}, 0)
    logger.save()
    with caplog.at_level(logging.ERROR):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        try:
            for step in range(1, 40):
                logger.log_metrics({"loss": 2.0}, step)
                logger.save()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        logger.log_metrics({"loss": 3.0}, 40)
        logger.log_metrics({"loss": 4.0}, 41)
        logger.save()
    logger.finalize("success")
    assert caplog.text.count("curves cannot be written") == 1
    values = logged(tmp_path / "run", "loss")
    assert values[0] == 1.0 and values[41] == 4.0 and 20 not in values


def test_one_rank_that_fails_takes_the_others_with_it(tmp_path: Path) -> None:
    with all_or_none():  # without a process group there are no others
        pass
    with pytest.raises(ValueError, match="mine"), all_or_none():
        raise ValueError("mine")
    code, printed = attempt(Job("run", str(tmp_path), 3, 2, "ddp", validate_every=1, fails=1))
    assert code == 0, printed[-4000:]
    assert printed.count(OtherRankError.__name__) >= 1 and "rank 1: RuntimeError: no clips here" in printed
