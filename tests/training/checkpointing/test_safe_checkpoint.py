"""A checkpoint that cannot be written: nothing is lost, every rank knows, and training goes on if it may."""

from __future__ import annotations

import json
import os
from pathlib import Path

import lightning as L
import pytest
from rank_program import Job, attempt

from reconx_pl.training.callbacks.safe_logger import SafeTensorBoardLogger
from reconx_pl.training.checkpointing.resume import checkpoint_folder, newest_checkpoint
from reconx_pl.training.checkpointing.safe_checkpoint import SafeModelCheckpoint

RANKS = [
    pytest.param(1, "auto", 0, id="one"),
    pytest.param(2, "ddp", 0, id="ddp"),
    pytest.param(2, "sharded", 1, id="sharded"),
]


def job(folder: Path, ranks: int, strategy: str, full: tuple[int, int, int], steps: int = 6) -> Job:
    return Job("run", str(folder), steps, ranks, strategy, checkpoint_every=2, safe=True, full=full)


def checkpoints(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if ".ckpt" in name)


@pytest.mark.parametrize(("ranks", "strategy", "rank"), RANKS)
def test_training_goes_on_and_the_earlier_one_stays(tmp_path: Path, ranks: int, strategy: str, rank: int) -> None:
    left = tmp_path / "run-step=9.ckpt.partial"  # by a run that was killed
    left.write_bytes(b"half")
    code, printed = attempt(job(tmp_path, ranks, strategy, (rank, 3, 4)))
    assert code == 0, printed[-4000:]
    assert checkpoints(tmp_path) == ["run-step=2.ckpt", "run-step=6.ckpt"]
    assert "run-step=4.ckpt could not be written" in printed and "newest checkpoint is" in printed
    for number in range(ranks):
        facts = json.loads((tmp_path / f"run.rank{number}.json").read_text())
        assert [step for step, _, _ in facts["batches"]] == [1, 2, 3, 4, 5, 6]
    assert newest_checkpoint(tmp_path) == tmp_path / "run-step=6.ckpt"


@pytest.mark.parametrize(("ranks", "strategy", "rank"), RANKS[1:])
def test_without_any_checkpoint_every_rank_ends(tmp_path: Path, ranks: int, strategy: str, rank: int) -> None:
    code, printed = attempt(job(tmp_path, ranks, strategy, (rank, 0, 9)), timeout=100)
    assert code != 0 and printed.count("CheckpointError: ") >= ranks, printed[-4000:]
    assert checkpoints(tmp_path) == []


def test_a_last_checkpoint_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    code, printed = attempt(job(tmp_path, 1, "auto", (0, 3, 9), steps=4))
    assert code != 0 and "CheckpointError: " in printed
    assert newest_checkpoint(tmp_path) == tmp_path / "run-step=2.ckpt" and len(checkpoints(tmp_path)) == 1


def set_up(run: Path, **options: object) -> SafeModelCheckpoint:
    """The callback of a run in ``run`` that validates every 7 steps, set up."""
    callback = SafeModelCheckpoint(save_last="link", **options)  # type: ignore[arg-type]
    trainer = L.Trainer(
        accelerator="cpu",
        logger=SafeTensorBoardLogger(run.parent, name=run.name, version=""),
        callbacks=[callback],
        val_check_interval=7,
        check_val_every_n_epoch=None,
        enable_progress_bar=False,
    )
    callback.setup(trainer, L.LightningModule(), "fit")
    assert checkpoint_folder(trainer) == run / "checkpoints"
    return callback


def test_folder_and_interval_left_out_are_those_of_the_run(tmp_path: Path) -> None:
    """The state is known by the interval and the folder: a run that named both goes on without naming them."""
    run = tmp_path / "run"
    named = set_up(run, dirpath=run / "checkpoints", every_n_train_steps=7)
    left_out = set_up(run)
    assert left_out.dirpath == named.dirpath == str(run / "checkpoints")
    assert left_out.state_key == named.state_key and "'every_n_train_steps': 7" in named.state_key


def test_folder_and_interval_given_stay(tmp_path: Path) -> None:
    elsewhere = set_up(tmp_path / "run", dirpath=tmp_path / "disk", every_n_train_steps=3)
    assert elsewhere.dirpath == str(tmp_path / "disk") and "'every_n_train_steps': 3" in elsewhere.state_key
    assert "'every_n_train_steps': 0" in set_up(tmp_path / "run", every_n_epochs=2).state_key
