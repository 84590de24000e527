"""Signals of a scheduler: all ranks save together, ask to be started again once, and stop with exit code 0."""

from __future__ import annotations

import os
import signal
import socket
import stat
import sys
import time
from pathlib import Path

import pytest
import torch
from interrupted import complete, curves, final_state, keys, prepared, start
from signal_at import order
from tiny_run import logged

from reconx_pl.data.datamodule import outlive_signals
from reconx_pl.data.procedural import write_procedural
from reconx_pl.training.callbacks.preemption import SignalNote, requeue_job
from reconx_pl.training.checkpointing.resume import newest_checkpoint

STEPS, STEP = 6, 3
SLURM = ("-c", "configs/slurm.yaml", "--trainer.accelerator", "cpu")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_procedural(folder, count=8, first_seed=0, frames=4, size=(32, 32), points=64, clips_per_shard=2)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    config = prepared(tmp_path_factory.mktemp("runs") / "whole", shards, STEPS, checkpoint_every=100)
    complete(start(config))
    return config.parent


def scontrol(folder: Path, code: int = 0, ends: bool = False) -> dict[str, str]:
    """An environment whose ``scontrol`` writes its arguments to ``folder/scontrol.log``.

    Args:
        ends: also end the process that called it, as Slurm ends the job that it requeues.
    """
    folder.mkdir(exist_ok=True)
    program = folder / "scontrol"
    lines = ["#!/bin/sh", f'echo "$@" >> {folder}/scontrol.log', 'echo "no such job" >&2', f"exit {code}"]
    program.write_text("\n".join([*lines[:-1], "kill -TERM $PPID" if ends else ":", lines[-1], ""]))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def asked(folder: Path) -> list[str]:
    log = folder / "scontrol.log"
    return log.read_text().splitlines() if log.exists() else []


def job(ranks: int, rank: int, number: str) -> dict[str, str]:
    """What srun sets for one task of a job on this machine."""
    return {
        "SLURM_JOB_ID": number,
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": str(ranks),
        "SLURM_NTASKS_PER_NODE": str(ranks),
        "SLURM_NNODES": "1",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_NODEID": "0",
    }


def free_job_number() -> str:
    """A job whose rendezvous port (15000 + its last four digits, says Lightning) is free."""
    for number in range(1000, 9999, 7):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", 15000 + number)):
                return f"7{number}"
    raise AssertionError("no free port")


def run_job(config: Path, tools: Path, ranks: int, *options: str) -> str:
    number = free_job_number()
    environments = [scontrol(tools, ends=True) | job(ranks, rank, number) for rank in range(ranks)]
    devices = ("--trainer.devices", str(ranks))
    return complete(*(start(config, *SLURM, *devices, *options, environment=found) for found in environments))


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
@pytest.mark.parametrize(("ranks", "options"), [(1, ()), (2, ("--trainer.strategy", "ddp"))], ids=["one", "two"])
def test_a_signal_saves_requeues_and_stops(
    tmp_path: Path, shards: Path, name: str, ranks: int, options: tuple[str, ...]
) -> None:
    config = prepared(tmp_path / "run", shards, STEPS, checkpoint_every=100)
    order(config.parent, ranks - 1, STEP, name)  # the last rank alone
    printed = run_job(config, tmp_path / "tools", ranks, *options)
    newest = newest_checkpoint(config.parent / "base" / "checkpoints")
    assert newest is not None and f"step={STEP + 1}" in newest.resolve().name, printed[-2000:]
    (line,) = asked(tmp_path / "tools")
    assert line.startswith("requeue 7")
    assert sorted(keys(config.parent)) == list(range(1, STEP + 2))
    assert "stopping" in printed and "Traceback" not in printed
    # the curves were written before Slurm was asked: it ends the job then
    assert max(logged(config.parent / "base", "train/loss")) == STEP


def test_a_signal_before_training_begins_waits_for_the_first_step(tmp_path: Path, shards: Path) -> None:
    config = prepared(tmp_path / "run", shards, STEPS, checkpoint_every=100)
    order(config.parent, 0, -1, "SIGUSR1")
    printed = run_job(config, tmp_path / "tools", 1)
    newest = newest_checkpoint(config.parent / "base" / "checkpoints")
    assert newest is not None and "step=1." in newest.resolve().name, printed[-2000:]
    assert len(asked(tmp_path / "tools")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("time_of_five", range(5))
@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
@pytest.mark.parametrize(("ranks", "options"), [(1, ()), (2, ("--trainer.strategy", "ddp"))], ids=["one", "two"])
def test_twenty_of_twenty(
    tmp_path: Path, shards: Path, name: str, ranks: int, options: tuple[str, ...], time_of_five: int
) -> None:
    test_a_signal_saves_requeues_and_stops(tmp_path, shards, name, ranks, options)


def test_a_requeued_run_ends_as_the_uninterrupted_one(tmp_path: Path, shards: Path, uninterrupted: Path) -> None:
    config = prepared(tmp_path / "run", shards, STEPS, checkpoint_every=100)
    order(config.parent, 0, STEP, "SIGUSR1")
    run_job(config, tmp_path / "tools", 1)
    before = newest_checkpoint(config.parent / "base" / "checkpoints")
    run_job(config, tmp_path / "tools", 1)
    assert len(asked(tmp_path / "tools")) == 1
    assert keys(config.parent) == keys(uninterrupted) and curves(config.parent) == curves(uninterrupted)
    expected, found = final_state(uninterrupted), final_state(config.parent)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    after = newest_checkpoint(config.parent / "base" / "checkpoints")
    assert before is not None and after is not None and before.resolve() != after.resolve()


def test_without_slurm_it_saves_and_stops(tmp_path: Path, shards: Path) -> None:
    config = prepared(tmp_path / "run", shards, STEPS, checkpoint_every=100)
    order(config.parent, 0, STEP, "SIGTERM")
    complete(start(config, "--data.num_workers", "2", environment=scontrol(tmp_path / "tools")))
    newest = newest_checkpoint(config.parent / "base" / "checkpoints")
    assert newest is not None and f"step={STEP + 1}" in newest.resolve().name
    assert not asked(tmp_path / "tools")


def test_a_signal_that_comes_again_is_passed_on_only_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    note, passed_on, now = SignalNote(), [], [100.0]
    monkeypatch.setattr(os, "kill", lambda process, number: passed_on.append(number))
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    before = signal.getsignal(signal.SIGTERM)
    try:
        for later in (0.0, 1.0):  # as srun and the scheduler send both
            now[0] += later
            note.take(signal.SIGTERM, None)
        assert not passed_on
        note.answered, now[0] = True, 200.0
        note.take(signal.SIGTERM, None)  # the checkpoint is there: nothing is lost by waiting
        assert not passed_on
        note.answered = False
        note.take(signal.SIGTERM, None)
        assert passed_on == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_array_jobs_are_named_by_their_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", scontrol(tmp_path)["PATH"])
    array = {"SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "3"}
    assert requeue_job({"SLURM_JOB_ID": "43", **array}) and requeue_job({"SLURM_JOB_ID": "44"})
    assert asked(tmp_path) == ["requeue 40_3", "requeue 44"]
    assert not requeue_job({})


def test_a_refused_requeue_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", scontrol(tmp_path, code=1)["PATH"])
    assert not requeue_job({"SLURM_JOB_ID": "44"})
    assert "no such job" in caplog.text and "submit the same script again" in caplog.text
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert not requeue_job({"SLURM_JOB_ID": "44"})


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_loader_processes_outlive_the_signals() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    try:
        outlive_signals(0)
        os.kill(os.getpid(), signal.SIGUSR1)  # would end this process
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
