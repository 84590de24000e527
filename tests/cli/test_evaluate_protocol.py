"""``evaluate.py --protocol`` from end to end, with a tiny untrained model on real photographs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from golden_kits import REPOSITORY
from jsonargparse import ArgumentParser
from tiny_run import tiny_config

from reconx_pl.cli.evaluate_command import evaluate_main
from reconx_pl.cli.main import main
from reconx_pl.data.procedural import write_procedural
from reconx_pl.errors import BadDataError
from reconx_pl.evaluation.protocols.run import ProtocolRun, process_of_run
from reconx_pl.evaluation.settings import EvaluationConfig
from reconx_pl.training.checkpointing.network_weights import save_network
from reconx_pl.training.module import ReconXModule

ENTRIES = {
    "one": {"scene": "banana", "context": [0, 2], "target": [1]},
    "two": {"scene": "banana", "context": [3, 5], "target": [4, 6]},
    "three": {"scene": "other", "context": [0, 4], "target": [2]},
}
QUICK = ["--evaluation.fit.steps", "4", "--evaluation.fit.loss.lpips", "0", "--evaluation.media", "false"]
QUICK += ["--evaluation.clip_frames", "4", "--device", "cpu"]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run of a few pixels that has not trained."""
    folder = tmp_path_factory.mktemp("run")
    content = yaml.safe_load(tiny_config(folder, folder, "stage2", steps=1, checkpoint_every=1).read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": content["model"]}))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ReconXModule, "model")
    torch.manual_seed(0)
    module = parser.instantiate_classes(parser.parse_object({"model": content["model"]})).model
    save_network(module.network, folder / "weights.safetensors")
    return folder


@pytest.fixture
def data(tmp_path: Path, shared_dir: Path) -> Path:
    """Two scenes of the same photographs; the second may be broken."""
    for name in ("banana", "other"):
        shutil.copytree(shared_dir / "scenes/banana", tmp_path / "scenes" / name, ignore=lambda *_: ["orig"])
    content = {"name": "own", "title": "Own scenes", "dataset": "own", "format": "posed", "path": "scenes/{scene}"}
    content |= {"height": 32, "width": 32, "poses": {"generated": "interpolated"}, "geometry": "scene"}
    content |= {"entries": ENTRIES, "metrics": ["psnr", "ssim"], "source": "a paper"}
    content |= {"published": [{"method": "Theirs", "psnr": 9.87}]}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return tmp_path


def arguments(run: Path, data: Path, out: Path, *more: str) -> list[str]:
    fixed = ["--protocol", str(data / "own.yaml"), "--model", str(run), "--data", str(data), "--out", str(out)]
    return [*fixed, *QUICK, *more]


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


def scores(out: Path) -> dict[str, Any]:
    return {scene["key"]: scene["scores"] for scene in results(out)["scenes"]}


def error_of(call: list[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        evaluate_main(call) if call[0].startswith("--") else main(call)
    assert isinstance(stopped.value.code, str)  # Python prints it and exits with 1
    return stopped.value.code


def test_a_broken_scene_is_named_and_the_exit_code_is_not_0(
    run: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = data / "out"
    (data / "scenes/other/images/002.jpg").write_bytes(b"no image")
    error = error_of(arguments(run, data, out))
    assert "not evaluated: 1 of 3 scenes" in error and "three failed: BadDataError" in error and "002.jpg" in error
    table = (out / "table.md").read_text()
    assert "Not complete: 2 of 3 entries scored" in table and "> - three failed: BadDataError" in table
    assert "| *published:* Theirs | 9.87 | – |" in table and f"`{run}`" in table
    own = results(out)
    assert sorted(scores(out)) == ["one", "two"] and own["complete"] is False
    assert own["protocol"] == ProtocolRun.load(out).named and own["protocol"]["hash"] in table
    made = (out / "scenes/one/result.json").stat().st_mtime_ns
    evaluate_main(arguments(run, data, out, "--allow_failed", "1"))  # returns: exit code 0
    assert "allowed: not evaluated: 1 of 3" in " ".join(capfd.readouterr().err.split())
    assert (out / "scenes/one/result.json").stat().st_mtime_ns == made
    assert "1 of 3" in error_of(["protocols", "gather", str(out)])
    shutil.copy(data / "scenes/banana/images/002.jpg", data / "scenes/other/images/002.jpg")
    evaluate_main(arguments(run, data, out))
    assert results(out)["complete"] is True and "Not complete" not in (out / "table.md").read_text()
    main(["protocols", "gather", str(out)])
    assert (out / "index.html").is_file()


def test_processes_share_the_work_and_the_last_one_finds_it_all(
    run: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    alone, shared = data / "alone", data / "shared"
    evaluate_main(arguments(run, data, alone))
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    for task in ("1", "0"):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        evaluate_main(arguments(run, data, shared))  # returns: its own share is done
        if task == "1":
            assert results(shared)["complete"] is False and "one is missing" in (shared / "table.md").read_text()
            assert sorted(scores(shared)) == ["two"]
            assert "2 of 3" in error_of(["protocols", "gather", str(shared)])
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "5")  # more processes than entries: nothing to do is no error
    evaluate_main(arguments(run, data, shared))
    assert results(shared)["complete"] is True and scores(shared) == scores(alone)
    assert results(shared)["mean"] == results(alone)["mean"]
    assert (shared / "table.md").read_text() == (alone / "table.md").read_text()
    (shared / "results.json").unlink()
    (shared / "table.md").unlink()
    main(["protocols", "gather", str(shared)])
    assert (shared / "table.md").read_text() == (alone / "table.md").read_text()


def test_a_killed_evaluation_goes_on_to_the_same_table(run: Path, data: Path) -> None:
    whole, killed = data / "whole", data / "killed"
    evaluate_main(arguments(run, data, whole))
    call = [sys.executable, str(REPOSITORY / "evaluate.py"), *arguments(run, data, killed)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(call, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not (killed / "scenes/one/result.json").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    made = (killed / "scenes/one/result.json").stat().st_mtime_ns
    evaluate_main(arguments(run, data, killed))
    assert (killed / "scenes/one/result.json").stat().st_mtime_ns == made
    assert (killed / "table.md").read_text() == (whole / "table.md").read_text()
    assert scores(killed) == scores(whole)


def test_a_part_and_another_pose_policy_say_so(run: Path, data: Path) -> None:
    out = data / "part"
    evaluate_main(arguments(run, data, out, "--scenes", "banana"))
    assert sorted(scores(out)) == ["one", "two"]
    assert "A part of the protocol: 2 of 3 entries" in (out / "table.md").read_text()
    evaluate_main(arguments(run, data, out, "--scenes", "1"))
    assert sorted(scores(out)) == ["one"]
    error = error_of(arguments(run, data, out, "--generated", "aligned"))  # nobody here can align
    assert "aligned" in error and "DUSt3R" in error
    evaluate_main(arguments(run, data, out, "--scenes", "1", "--generated", "aligned", "--no-diffusion"))  # nor has to
    assert results(out / "ablation/no-diffusion")["complete"] is True
    assert "no scene or entry apple" in error_of(arguments(run, data, out, "--scenes", "one,apple"))
    assert "no protocol 'never'" in error_of(["--protocol", "never", *arguments(run, data, out)[2:]])


def test_points_and_poses_come_from_the_named_estimator(run: Path, data: Path) -> None:
    content = yaml.safe_load((data / "own.yaml").read_text())
    content |= {"geometry": "inputs", "poses": {"generated": "aligned"}}
    (data / "own.yaml").write_text(yaml.safe_dump(content))
    out = data / "aligned"
    estimator = ["--estimator", "aligning_estimator.PlaneEstimator", "--estimator.depth", "2"]
    evaluate_main(arguments(run, data, out, "--scenes", "one", *estimator))
    own = results(out)
    assert own["pose_policy"] == "aligned" and own["estimator"] == "plane at 2"
    assert list(own["geometry"]) == [
        "points found by PlaneEstimator from the 2 context views, with their true cameras"  # not the scene's own
    ]
    table = (out / "table.md").read_text()
    assert "by global alignment with those held fixed" in table and "`plane at 2`" in table
    made = (out / "scenes/one/result.json").stat().st_mtime_ns
    estimator[-1] = "3"
    evaluate_main(arguments(run, data, out, "--scenes", "one", *estimator))
    assert (out / "scenes/one/result.json").stat().st_mtime_ns > made  # another estimator: done again
    evaluate_main(arguments(run, data, out, "--scenes", "one", "--generated", "interpolated", *estimator))
    assert results(out)["pose_policy"] == "interpolated"
    assert results(out)["protocol"]["hash"] != own["protocol"]["hash"]


def test_a_benchmark_of_packed_clips(run: Path, tmp_path: Path) -> None:
    write_procedural(tmp_path / "rooms", count=2, first_seed=5, frames=4, size=(32, 32), points=300)
    content = {"name": "own", "title": "Rooms", "dataset": "rooms", "format": "shards", "path": "rooms"}
    content |= {"height": 32, "width": 32, "poses": {"generated": "interpolated"}, "geometry": "scene"}
    content |= {"views": {"contexts": 2, "targets_every": 1}, "options": {"clips": 2, "first_seed": 5}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content | {"metrics": ["psnr"]}))
    evaluate_main(arguments(run, tmp_path, tmp_path / "out"))
    own = results(tmp_path / "out")
    assert own["complete"] is True and own["finished"] == 2 and set(own["mean"]["reconx"]) == {"psnr"}
    assert [scene["contexts"] for scene in own["scenes"]] == [[0, 3], [0, 3]]
    assert [scene["targets"] for scene in own["scenes"]] == [[1, 2], [1, 2]]
    main(["protocols", "check", str(tmp_path / "own.yaml"), "--data", str(tmp_path)])
    content["options"]["first_seed"] = 6
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content))
    assert "first_seed 5 instead of 6" in error_of(arguments(run, tmp_path, tmp_path / "out"))


def test_the_place_of_a_process() -> None:
    array = {"SLURM_ARRAY_TASK_ID": "13", "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_COUNT": "4"}
    ranks = {"RANK": "1", "WORLD_SIZE": "2"}
    assert process_of_run({}) == (0, 1)
    assert process_of_run(array) == (3, 4) and process_of_run(ranks) == (1, 2)
    assert process_of_run({**array, **ranks}) == (7, 8)
    places = [
        process_of_run({**array, "SLURM_ARRAY_TASK_ID": str(10 + task), "RANK": str(rank), "WORLD_SIZE": "2"})[0]
        for task in range(4)
        for rank in range(2)
    ]
    assert sorted(places) == list(range(8))


def test_a_plan_comes_back_as_it_was(tmp_path: Path, data: Path) -> None:
    from reconx_pl.evaluation.protocols.files import load_protocol

    config = EvaluationConfig(pose_policy="interpolated", metrics=("psnr",), media=False)
    for name in ("re10k-hard", "mipnerf360-3", data / "own.yaml"):
        plan = ProtocolRun(load_protocol(name), ("a", "b"), 7, "runs/x", "view generator", config, "DUSt3R")
        plan.save(tmp_path)
        again = ProtocolRun.load(tmp_path)
        assert again == plan and again.config.hash == config.hash and again.named == plan.named
    file = tmp_path / "protocol.json"
    file.write_text(file.read_text().replace('"height": 32', '"height": 64'))
    with pytest.raises(BadDataError, match="another version"):
        ProtocolRun.load(tmp_path)
    plan.save(tmp_path)
    file.write_text(file.read_text().replace('"layout"', '"former"'))  # its records would count as missing
    with pytest.raises(BadDataError, match="another version"):
        ProtocolRun.load(tmp_path)
    file.write_text("{}")
    with pytest.raises(BadDataError, match="not what evaluate.py --protocol writes"):
        ProtocolRun.load(tmp_path)
    with pytest.raises(BadDataError, match="missing or damaged"):
        ProtocolRun.load(tmp_path / "absent")


def test_an_ablation_is_one_command_and_all_rows_are_one_table(run: Path, data: Path) -> None:
    out = data / "out"
    one = ["--scenes", "one"]
    evaluate_main(arguments(run, data, out, *one))
    assert not (out / "ablation.md").exists()
    evaluate_main(arguments(run, data, out, *one, "--no-structure"))
    without_model = [word for word in arguments(run, data, out, *one) if word not in ("--model", str(run))]
    evaluate_main([*without_model, "--no-diffusion", "--random-init"])
    rows = [line for line in (out / "ablation.md").read_text().splitlines() if line.startswith(("| yes", "| -"))]
    assert [row.split("|")[1:4] for row in rows] == [
        [" - ", " - ", " - "],
        [" yes ", " - ", " yes "],
        [" yes ", " yes ", " yes "],
    ]
    names = ["no-structure", "no-diffusion+random-init"]
    parts = {name: results(out / "ablation" / name) for name in names}
    full = results(out)
    assert parts[names[0]]["model"] != full["model"] and parts[names[0]]["config_hash"] == full["config_hash"]
    assert parts[names[1]]["model"] == "no video model" and parts[names[1]]["config_hash"] != full["config_hash"]
    assert all(one["protocol"] == full["protocol"] for one in parts.values())
    assert "--no-diffusion" in error_of(without_model)  # nobody to generate


def test_clips_of_shards_are_aligned_by_the_named_estimator(run: Path, tmp_path: Path) -> None:
    write_procedural(tmp_path / "rooms", count=1, first_seed=5, frames=4, size=(32, 32), points=300)
    call = ["--model", str(run), "--shards", str(tmp_path / "rooms"), "--out", str(tmp_path / "out"), *QUICK]
    call += ["--evaluation.pose_policy", "aligned", "--evaluation.metrics", "[psnr]"]
    estimator = ["--estimator", "aligning_estimator.PlaneEstimator", "--estimator.depth", "2"]
    assert "no estimator was named" in error_of(call)
    evaluate_main([*call, *estimator])
    assert results(tmp_path / "out")["estimator"] == "plane at 2"
    with_points = [word if word != "aligned" else "dataset" for word in call]
    assert "belong to a scene" in error_of([*with_points, *estimator])
