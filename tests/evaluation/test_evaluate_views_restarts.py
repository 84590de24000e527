"""Entries of a protocol over processes, after a kill, and with one that cannot be read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numba
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from killed_evaluation import SEEDS
from tiny_scenes import ENTRIES, MODEL, PROTOCOL, QUICK, CrossFade, lazily, tiny_views

from reconx_pl.errors import BadDataError, ConfigurationError
from reconx_pl.evaluation.entry_views import EntryViews, LazyViews
from reconx_pl.evaluation.records import Record
from reconx_pl.evaluation.runner import evaluate_views

SHORT = replace(ENTRIES, fit=replace(QUICK, steps=5))
TIMES = {"seconds", "split", "scenes_per_hour"}


def run(entries: list[LazyViews], out: Path, view_generator: CrossFade | None = None, **options: Any) -> Record:
    given = {"config": SHORT, "protocol": PROTOCOL, "model": MODEL} | options
    return evaluate_views(entries, view_generator or CrossFade(), given.pop("config"), out, **given)


def numbers(summary: Record) -> Record:
    """A summary without what no two runs share."""
    kept = {name: value for name, value in summary.items() if name not in TIMES}
    scenes = [{name: value for name, value in scene.items() if name not in TIMES} for scene in summary["scenes"]]
    return kept | {"scenes": scenes}


def test_a_killed_evaluation_goes_on_to_the_same_table(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed_evaluation.py")
    roots = [str(Path(__file__).parents[2]), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, roots)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(tmp_path / "killed"), f"room-{SEEDS[1]}"]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = json.loads((tmp_path / "killed" / "results.json").read_text())
    assert left["complete"] is False and left["finished"] == 1
    entries, view_generator = lazily(*(tiny_views(seed) for seed in SEEDS)), CrossFade()
    restarted = run(entries, tmp_path / "killed", view_generator, config=ENTRIES)
    assert [clip.key for clip in view_generator.seen] == [f"room-{seed}" for seed in SEEDS[1:]]
    whole = run(entries, tmp_path / "whole", config=ENTRIES)
    assert restarted["complete"] and numbers(restarted) == numbers(whole)
    assert (
        run(entries, tmp_path / "killed", view_generator, config=ENTRIES) == restarted and len(view_generator.seen) == 2
    )


def _entries() -> list[LazyViews]:
    targets = {1: (1, 2), 2: (3,), 3: (1, 2, 3)}
    return lazily(*(tiny_views(seed, targets=chosen) for seed, chosen in targets.items()))


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    summary = run(_entries(), Path(folder, f"out{rank}"), rank=rank, world=2)
    Path(folder, f"summary{rank}.json").write_text(json.dumps(summary))
    dist.destroy_process_group()


def test_one_process_and_two_give_the_same_numbers(tmp_path: Path) -> None:
    one = run(_entries(), tmp_path / "one")
    assert one["complete"] and [len(scene["targets"]) for scene in one["scenes"]] == [2, 1, 3]
    mp.start_processes(_rank, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    two = json.loads((tmp_path / "summary0.json").read_text())
    assert two == json.loads((tmp_path / "summary1.json").read_text())
    for rank in range(2):  # an array of processes that share a folder and nothing else
        array = run(_entries(), tmp_path / "array", rank=rank, world=2)
    for other in (two, array):
        assert numbers(other)["scenes"] == numbers(one)["scenes"] and other["complete"]
        for method, scores in one["mean"].items():
            assert other["mean"][method] == pytest.approx(scores, abs=1e-12)


def test_an_entry_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    def damaged() -> EntryViews:
        raise BadDataError("images/00000032.jpg is truncated")

    good = tiny_views(1)
    poses = good.target_cameras.world_to_camera.clone()
    poses[0, 0, 0] = float("nan")
    bad_pose = replace(good, key="pose", target_cameras=replace(good.target_cameras, world_to_camera=poses))
    other = LazyViews("other", lambda: good)
    summary = run([LazyViews("scan24", damaged), *lazily(good, bad_pose), other], tmp_path)
    assert summary["complete"] is False and summary["finished"] == 1 and summary["expected"] == 4
    assert summary["failed"].keys() == {"scan24", "pose", "other"}
    assert "00000032.jpg" in summary["failed"]["scan24"] and "target views of pose" in summary["failed"]["pose"]
    assert "room-1" in summary["failed"]["other"]
    assert summary["mean"]["reconx"] == summary["scenes"][0]["scores"]["reconx"]["mean"]
    mended = run(lazily(good), tmp_path)
    assert mended["complete"]


def test_another_protocol_estimator_or_target_is_another_result(tmp_path: Path) -> None:
    views, view_generator = tiny_views(1), CrossFade()

    def again(views: EntryViews, **options: Any) -> int:
        run(lazily(views), tmp_path, view_generator, **options)
        return len(view_generator.seen)

    assert again(views) == again(views) == 1
    for _ in range(2):
        assert again(views, protocol={"name": "tiny", "hash": "4567", "size": (32, 32)}) == 2
    assert again(views, protocol="tiny 4567") == 3 and again(views, protocol="tiny 4567") == 3
    masked = replace(views, target_masks=torch.ones(2, 32, 32, dtype=torch.bool))
    assert again(masked, protocol="tiny 4567") == 4
    deeper = replace(masked, context_depth=masked.context_depth * 1.1)
    assert again(deeper, protocol="tiny 4567") == 5
    assert again(deeper, protocol="tiny 4567", model="test view generator 2") == 6
    with pytest.raises(ConfigurationError, match="unique"):
        run(lazily(views, views), tmp_path)
