"""The command line trains, hands over from stage to stage, and goes on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from golden_kits import REPOSITORY
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import logged, tiny_config

from reconx_pl.cli.evaluate import evaluate
from reconx_pl.cli.train import ReconXCLI, main
from reconx_pl.data.datamodule import ShardDataModule
from reconx_pl.data.procedural import write_procedural
from reconx_pl.data.shards.stream import read_clips
from reconx_pl.diffusion.weights import load_network, read_network
from reconx_pl.errors import BadWeightsError, MissingWeightsError
from reconx_pl.evaluation.runner import EvaluationConfig
from reconx_pl.splatting.fit import FitConfig
from reconx_pl.splatting.losses import LossWeights
from reconx_pl.training.module import ReconXModule
from reconx_pl.training.optimizer import OptimizerConfig
from reconx_pl.training.runs import load_run
from reconx_pl.training.stages import TRAINED, Stage, group_of
from reconx_pl.visualization.video import read_mp4


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_procedural(folder, count=6, first_seed=0, frames=4, size=(32, 32), points=64, clips_per_shard=2)
    return folder


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    main(["fit", "-c", str(tiny_config(folder, shards, "base", steps=3, checkpoint_every=3))])
    init = folder / "base" / "weights.safetensors"
    main(["fit", "-c", str(tiny_config(folder, shards, "stage2", steps=3, checkpoint_every=3, init=init))])
    return folder


def test_a_stage_changes_its_own_parameters_only(two_stages: Path) -> None:
    before = load_file(two_stages / "base" / "weights.safetensors")
    after = load_file(two_stages / "stage2" / "weights.safetensors")
    changed = {group_of(name) for name in before if not torch.equal(before[name], after[name])}
    assert changed == TRAINED[Stage.structure]
    gates = [after[name] for name in after if name.endswith("structure_gate")]
    assert gates and all(gate.abs() > 0 for gate in gates)  # the gate was 0 and has opened


def test_the_log_has_what_a_reader_of_curves_wants(two_stages: Path) -> None:
    run = two_stages / "stage2"
    assert sorted(logged(run, "train/loss")) == [0, 1, 2]
    assert len(logged(run, "val/loss")) == 1
    assert logged(run, "throughput/clips_per_second")
    assert logged(run, "lr-AdamW")
    events = EventAccumulator(str(run)).Reload()
    generated = [tag for tag in events.Tags()["images"] if tag.startswith("generated/")]
    assert generated and events.Images(generated[0])[0].encoded_image_string.startswith(b"GIF89a")


def test_a_run_is_rebuilt_from_its_folder(two_stages: Path) -> None:
    module = load_run(two_stages / "stage2")
    weights = load_file(two_stages / "stage2" / "weights.safetensors")
    assert module.stage is Stage.structure
    assert all(torch.equal(tensor, weights[name]) for name, tensor in module.network.state_dict().items())


def test_a_checkpoint_of_lightning_is_read_without_unpickling(two_stages: Path) -> None:
    weights = read_network(two_stages / "base" / "checkpoints" / "last.ckpt").tensors
    exported = load_file(two_stages / "base" / "weights.safetensors")
    assert weights.keys() == exported.keys()
    assert all(torch.equal(weights[name], exported[name]) for name in weights)


def test_weights_that_do_not_fit_are_listed(two_stages: Path, tmp_path: Path) -> None:
    network = load_run(two_stages / "stage2").network
    with pytest.raises(MissingWeightsError, match="absent.ckpt"):
        load_network(network, tmp_path / "absent.ckpt")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((two_stages / "base" / "weights.safetensors").read_bytes()[:1000])
    with pytest.raises(BadWeightsError, match="broken.safetensors"):
        load_network(network, broken)
    evil = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {"network.a": subprocess.Popen}}, evil)
    with pytest.raises(BadWeightsError, match="evil.ckpt"):
        load_network(network, evil)
    other = tmp_path / "other.ckpt"
    torch.save({"state_dict": {"network.novel": torch.zeros(1)}}, other)
    with pytest.raises(BadWeightsError, match=r"missing: .*image_tokens.*1 unexpected: novel"):
        load_network(network, other)


def run_training(config: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY / "tests" / "support")}
    command = [sys.executable, str(REPOSITORY / "train.py"), "fit", "-c", str(config)]
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def recorded(path: Path) -> Path:
    """The configuration with a record of the clips that were trained on, in its folder."""
    config = yaml.safe_load(path.read_text())
    callback = {"class_path": "key_recorder.KeyRecorder", "init_args": {"folder": str(path.parent)}}
    config["trainer"]["callbacks"].append(callback)
    path.write_text(yaml.safe_dump(config))
    return path


def clips_by_step(folder: Path) -> dict[int, list[str]]:
    """Clips of each step; where a step was done again after the kill, the second time counts."""
    return dict(json.loads(line) for line in (folder / "rank0.jsonl").read_text().splitlines())


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path, shards: Path, two_stages: Path) -> None:
    init = two_stages / "base" / "weights.safetensors"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    settings = {"steps": 8, "checkpoint_every": 3, "init": init}
    main(["fit", "-c", str(recorded(tiny_config(whole, shards, "stage2", **settings)))])

    config = recorded(tiny_config(killed, shards, "stage2", **settings))
    process = run_training(config)
    checkpoint = killed / "stage2" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not checkpoint.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.is_file(), process.stderr.read().decode()[-2000:] if process.stderr else ""
    assert not (killed / "stage2" / "weights.safetensors").exists()

    resumed = run_training(config)
    _, errors = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, errors.decode()[-2000:]
    for tag in ("train/loss", "lr-AdamW"):
        expected, seen = logged(whole / "stage2", tag), logged(killed / "stage2", tag)
        assert len(expected) == 8
        assert seen[7] == expected[7] and {step: seen[step] for step in seen} == {step: expected[step] for step in seen}
    assert len(clips_by_step(whole)) == 8 and clips_by_step(killed) == clips_by_step(whole)
    first, second = (load_file(folder / "stage2" / "weights.safetensors") for folder in (whole, killed))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_learning_rate_warms_up_and_falls() -> None:
    config = OptimizerConfig(lr=1.0, warmup_steps=10, decay="cosine")
    factors = [config.factor(step, 110) for step in range(111)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == factors[10] == 1.0
    assert factors[60] == pytest.approx(0.5) and factors[110] == pytest.approx(0.0)
    assert OptimizerConfig(decay="none").factor(10_000, 100) == 1.0


def test_validation_generates_fits_and_scores_held_out_clips(two_stages: Path, shards: Path) -> None:
    config = yaml.safe_load((two_stages / "stage2.yaml").read_text())
    out = two_stages / "scores"
    fit = {"steps": 10, "loss": {"lpips": 0.0}}
    evaluation = {"fit": fit, "metrics": ["psnr", "ssim"], "media": False}
    callback = {
        "class_path": "reconx_pl.training.callbacks.callbacks.EvaluationCallback",
        "init_args": {"out": str(out), "clips": 1, "config": evaluation},
    }
    config["trainer"]["callbacks"].append(callback)
    path = two_stages / "validate.yaml"
    path.write_text(yaml.safe_dump(config))
    main(["validate", "-c", str(path)])
    results = json.loads((out / "val-step0000003" / "results.json").read_text())  # the checkpoint's step, not 0
    assert results["complete"] and results["finished"] == 1
    generated = next(iter(read_clips(shards)))
    assert [scene["key"] for scene in results["scenes"]] == [generated.key]
    scores = logged(two_stages / "stage2", "val/reconx/psnr")
    assert list(scores.values()) == [pytest.approx(results["mean"]["reconx"]["psnr"], rel=1e-5)]
    # the weights that were scored are those of the checkpoint, and evaluate.py's way gives the same numbers
    again = evaluate(
        model=str(two_stages / "stage2"),
        out=two_stages / "report",
        shards=shards,
        clips=1,
        evaluation=EvaluationConfig(
            fit=FitConfig(steps=10, loss=LossWeights(lpips=0.0)), metrics=("psnr", "ssim"), media=False
        ),
        logs=[two_stages / "stage2"],
        device="cpu",
    )
    for method, scores in results["mean"].items():
        assert again["mean"][method] == pytest.approx(scores, rel=1e-5)
    page = (two_stages / "report" / "index.html").read_text()
    assert generated.key in page and "stage2: training" in page


def test_prediction_writes_a_video_for_every_clip(two_stages: Path, shards: Path) -> None:
    config = yaml.safe_load((two_stages / "stage2.yaml").read_text())
    out = two_stages / "generated"
    config["trainer"]["callbacks"] = [
        {"class_path": "reconx_pl.training.callbacks.callbacks.GeneratedClips", "init_args": {"out": str(out)}}
    ]
    config["ckpt_path"] = str(two_stages / "stage2" / "checkpoints" / "last.ckpt")
    path = two_stages / "predict.yaml"
    path.write_text(yaml.safe_dump(config))
    main(["predict", "-c", str(path), "--return_predictions", "false"])
    clips = list(read_clips(shards))
    assert {video.stem for video in out.glob("*.mp4")} == {clip.key for clip in clips}
    frames, fps = read_mp4(out / f"{clips[0].key}.mp4")
    assert frames.shape == (4, 32, 32, 3) and fps == pytest.approx(clips[0].fps)
    first = clips[0].frames[0].permute(1, 2, 0).numpy().astype(int)
    assert abs(frames[0].astype(int) - first).mean() < 12  # the given view, but for the codec
    assert abs(frames[1].astype(int) - first).mean() > 12  # generated by three steps of training: not a copy


def test_weights_lost_after_the_last_step_are_exported_by_the_next_start(two_stages: Path) -> None:
    weights = two_stages / "base" / "weights.safetensors"
    before = load_file(weights)
    weights.unlink()  # as if killed between the last checkpoint and the export
    main(["fit", "-c", str(two_stages / "base.yaml")])
    after = load_file(weights)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_validation_without_weights_is_refused(two_stages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load((two_stages / "base.yaml").read_text()) | {"ckpt_path": None}
    path = two_stages / "no_weights.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit, match="no weights to work with: give --ckpt_path"):
        main(["validate", "-c", str(path)])


def test_one_seed_sets_everything(two_stages: Path) -> None:
    cli = ReconXCLI(
        ReconXModule,
        ShardDataModule,
        args=["-c", str(bare(two_stages)), "--seed_everything", "7"],
        run=False,
        save_config_callback=None,
    )
    assert (cli.model.seed, cli.datamodule.seed) == (7, 7)


def bare(folder: Path) -> Path:
    """The configuration of stage 2 without what only the fit subcommand takes."""
    config = yaml.safe_load((folder / "stage2.yaml").read_text())
    del config["ckpt_path"]
    path = folder / "bare.yaml"
    path.write_text(yaml.safe_dump(config))
    return path
