"""Which checkpoint a run goes on from, what is in it, and what is never read."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_run import tiny_config

from reconx_pl.cli.train import main
from reconx_pl.data.procedural import write_procedural
from reconx_pl.errors import BadWeightsError, CheckpointError, MissingWeightsError
from reconx_pl.training.checkpointing.resume import EitherCheckpointIO, newest_checkpoint
from reconx_pl.training.checkpointing.sharded_checkpoint import read_rest, read_table, read_whole, write_folder
from reconx_pl.training.runs import weights_of


def checkpoint(value: float, step: int) -> dict[str, Any]:
    groups = [{"lr": 0.5, "betas": (0.9, 0.99), "params": ["network.b", "network.a"]}]
    state = {"network.a": {"exp_avg": torch.full((2, 3), value), "step": torch.tensor(7.0)}}
    return {
        "state_dict": {"network.a": torch.full((2, 3), value), "network.b": torch.zeros(1)},
        "optimizer_states": [{"state": state, "param_groups": groups}],
        "global_step": step,
    }


def write(path: Path, value: float = 1.0, step: int = 1) -> Path:
    write_folder(path, checkpoint(value, step), True)
    return path


def test_a_folder_is_read_as_the_checkpoint_of_an_unsharded_run(tmp_path: Path) -> None:
    found = EitherCheckpointIO().load_checkpoint(write(tmp_path / "a.ckpt", 2.0, step=5))
    assert found["global_step"] == 5
    assert torch.equal(found["state_dict"]["network.a"], torch.full((2, 3), 2.0))
    (optimizer,) = found["optimizer_states"]
    assert optimizer["param_groups"] == [{"lr": 0.5, "betas": (0.9, 0.99), "params": [0, 1]}]
    assert list(optimizer["state"]) == [1]  # network.a is the second parameter; the first never had a gradient
    assert torch.equal(optimizer["state"][1]["exp_avg"], torch.full((2, 3), 2.0)) and optimizer["state"][1]["step"] == 7


def test_a_checkpoint_stays_until_the_one_in_its_place_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "last.ckpt", 1.0, step=1)

    save = torch.save

    def killed(value: Any, target: Any) -> None:  # when the parts are there, and before the rest is
        if not isinstance(target, Path):
            return save(value, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        write(path, 2.0, step=2)
    monkeypatch.undo()
    assert read_whole(path)["global_step"] == 1
    assert newest_checkpoint(tmp_path) == path
    write(path, 2.0, step=2)
    assert read_whole(path)["global_step"] == 2 and os.listdir(tmp_path) == ["last.ckpt"]


def test_a_link_is_replaced_and_what_it_led_to_stays(tmp_path: Path) -> None:
    first = write(tmp_path / "step=1.ckpt")
    link = tmp_path / "last.ckpt"
    link.symlink_to(first.name)
    write(link, step=2)
    assert not link.is_symlink() and read_rest(link)["global_step"] == 2 and read_rest(first)["global_step"] == 1


def test_the_newest_complete_checkpoint_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert newest_checkpoint(tmp_path / "absent") is None and newest_checkpoint(tmp_path) is None
    first = write(tmp_path / "epoch=0-step=9.ckpt", step=9)
    second = write(tmp_path / "epoch=0-step=10.ckpt", step=10)  # "10" sorts before "9"
    os.utime(second, (1, 1))
    assert newest_checkpoint(tmp_path) == second
    link = tmp_path / "last.ckpt"
    link.symlink_to(second.name)
    assert newest_checkpoint(tmp_path) == link
    for damage in (".metadata", "meta.pt"):
        broken = tmp_path / "epoch=0-step=11.ckpt"
        shutil.copytree(second, broken)
        (broken / damage).unlink()
        with caplog.at_level(logging.WARNING):
            assert newest_checkpoint(tmp_path) == link
        assert "step=11.ckpt is not a complete checkpoint" in caplog.text
        shutil.rmtree(broken)
    between = tmp_path / "epoch=0-step=12.ckpt.old"  # killed after it was moved away, before the next was in its place
    shutil.copytree(second, between)
    assert newest_checkpoint(tmp_path) == between
    shutil.rmtree(between)
    file = tmp_path / "last-v1.ckpt"  # a file whose name has no step
    torch.save({"global_step": 11, "state_dict": {"network.a": torch.zeros(1000)}}, file)
    assert newest_checkpoint(tmp_path) == file
    file.write_bytes(file.read_bytes()[:-100])
    assert newest_checkpoint(tmp_path) == link
    shutil.rmtree(second)
    assert newest_checkpoint(tmp_path) == first  # and the link leads nowhere


def test_evaluation_takes_what_the_run_exported_or_else_its_newest_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match="no weights at .*weights.safetensors or in .*checkpoints"):
        weights_of(tmp_path)
    found = write(tmp_path / "checkpoints" / "step=1.ckpt")
    assert weights_of(tmp_path) == found
    (tmp_path / "weights.safetensors").touch()
    assert weights_of(tmp_path) == tmp_path / "weights.safetensors"


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch owned",)


def test_nothing_in_a_folder_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "a.ckpt")
    table = (path / ".metadata").read_bytes()
    (path / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(BadWeightsError, match=r"asks for (posix|nt|os)\.system"):
        read_table(path)
    (path / ".metadata").write_bytes(table[:100])
    with pytest.raises(BadWeightsError, match="damaged"):
        read_table(path)
    (path / ".metadata").write_bytes(pickle.dumps([1]))
    with pytest.raises(BadWeightsError, match="not the table"):
        read_table(path)
    (path / ".metadata").write_bytes(table)
    torch.save({"global_step": Evil()}, path / "meta.pt")
    with pytest.raises(BadWeightsError, match="meta.pt cannot be read"):
        read_whole(path)
    # an object beside the tensors, as torch writes whatever is not a tensor
    torch.distributed.checkpoint.save({"model/a": Evil()}, checkpoint_id=tmp_path / "b.ckpt", no_dist=True)
    torch.save({}, tmp_path / "b.ckpt" / "meta.pt")
    with pytest.raises(BadWeightsError, match="holds more than tensors"):
        read_table(tmp_path / "b.ckpt")
    torch.save({"state_dict": {"network.a": Evil()}}, tmp_path / "c.ckpt")
    with pytest.raises(BadWeightsError, match="c.ckpt"):
        EitherCheckpointIO().load_checkpoint(tmp_path / "c.ckpt")
    assert not (tmp_path / "owned").exists()


def test_a_file_stays_until_the_one_in_its_place_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, save = tmp_path / "last.ckpt", torch.save
    EitherCheckpointIO().save_checkpoint(checkpoint(1.0, step=1), path)

    def cut_short(value: Any, target: Path) -> None:
        save(value, target)
        target.write_bytes(target.read_bytes()[:-100])

    def killed(value: Any, target: Path) -> None:
        cut_short(value, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        EitherCheckpointIO().save_checkpoint(checkpoint(2.0, step=2), path)
    assert newest_checkpoint(tmp_path) == path and EitherCheckpointIO().load_checkpoint(path)["global_step"] == 1
    monkeypatch.setattr(torch, "save", cut_short)
    with pytest.raises(CheckpointError, match="last.ckpt could not be written"):
        EitherCheckpointIO().save_checkpoint(checkpoint(2.0, step=2), path)
    assert list(tmp_path.iterdir()) == [path] and EitherCheckpointIO().load_checkpoint(path)["global_step"] == 1
    monkeypatch.setattr(torch, "save", save)
    EitherCheckpointIO().save_checkpoint(checkpoint(2.0, step=2), path)
    assert list(tmp_path.iterdir()) == [path] and EitherCheckpointIO().load_checkpoint(path)["global_step"] == 2


def test_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(value: Any, target: Path) -> None:
        target.write_bytes(b"begun")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        CheckpointError, match=r"a.ckpt could not be written: the disk is full \(.* GiB are free\).*make room"
    ):
        EitherCheckpointIO().save_checkpoint(checkpoint(1.0, step=1), tmp_path / "a.ckpt")
    assert not list(tmp_path.iterdir())


def test_last_says_that_a_run_starts_anew_and_then_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = tmp_path / "shards"
    write_procedural(shards, count=2, frames=4, size=(32, 32), points=64, clips_per_shard=1)
    config = tiny_config(tmp_path, shards, "base", steps=2, checkpoint_every=1)
    arguments = ["fit", "-c", str(config), "--trainer.limit_val_batches", "0"]
    with pytest.raises(SystemExit, match="no complete checkpoint in .*base/checkpoints: give --ckpt_path"):
        main(["validate", *arguments[1:]])
    with caplog.at_level(logging.WARNING):
        main([*arguments, "--trainer.max_steps", "1"])
    assert "the run starts anew, from step 0" in caplog.text
    caplog.clear()
    main(arguments)
    assert "starts anew" not in caplog.text
    assert yaml.safe_load(config.read_text())["ckpt_path"] == "last"
    # the second start went on from the link, so that the checkpoint of step 1 could go
    checkpoints = tmp_path / "base" / "checkpoints"
    newest = newest_checkpoint(checkpoints)
    assert newest == checkpoints / "last.ckpt" and newest.resolve().name == "epoch=0-step=2.ckpt"
    assert len(list(checkpoints.iterdir())) == 2
