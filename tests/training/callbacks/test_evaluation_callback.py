"""The evaluation of held-out clips within a training run: when it happens, and what the log shows of it."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import logged, tiny_config

from reconx_pl.cli.train import main
from reconx_pl.data.procedural import procedural_clip, write_procedural
from reconx_pl.errors import ConfigurationError
from reconx_pl.evaluation.coverage import HALVES
from reconx_pl.evaluation.runner import EvaluationConfig, evaluate_scene
from reconx_pl.files.json_files import read_json
from reconx_pl.splatting.fit import FitConfig
from reconx_pl.splatting.losses import LossWeights
from reconx_pl.training.callbacks.callbacks import (
    EvaluationCallback,
    flatten_scores,
    generate_together,
    validations_so_far,
)
from reconx_pl.types import Clip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_procedural(folder, count=4, first_seed=0, frames=4, size=(32, 32), points=64, clips_per_shard=2)
    return folder


def run_of(folder: Path, shards: Path, steps: int, **options: Any) -> Path:
    """The demo's base stage, tiny, that validates after each step; returns its configuration."""
    folder.mkdir(exist_ok=True)
    path = tiny_config(folder, shards, "base", steps=steps, checkpoint_every=1, evaluates=True)
    config = yaml.safe_load(path.read_text())
    config["trainer"] |= {"num_sanity_val_steps": 1, "enable_progress_bar": False}
    unwanted = ("MediaCallback", "RichProgressBar", "ObserveCallback")
    kept = [c for c in config["trainer"]["callbacks"] if not c["class_path"].endswith(unwanted)]
    config["trainer"]["callbacks"] = kept
    (evaluation,) = [c["init_args"] for c in kept if c["class_path"].endswith("EvaluationCallback")]
    evaluation |= options
    evaluation["config"]["fit"]["steps"] = 3
    config["model"]["optimizer"]["decay"] = "none"  # which would depend on the number of steps
    path.write_text(yaml.safe_dump(config))
    return path


def evaluated(folder: Path) -> list[int]:
    """Steps at which held-out clips were evaluated."""
    return sorted(int(path.name.removeprefix("val-step")) for path in (folder / "base" / "evaluation").glob("*"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """Three steps, and after them two more."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    main(["fit", "-c", str(run_of(folder, shards, 3, every_n_validations=2))])
    assert evaluated(folder) == [2, 3]  # not in the sanity check before; every second one, and the last
    main(["fit", "-c", str(run_of(folder, shards, 5, every_n_validations=2))])
    return folder


def test_every_nth_validation_counts_on_after_a_restart(run: Path) -> None:
    assert evaluated(run) == [2, 3, 4, 5]  # counted anew the one after step 4 would be the first, and not evaluated


def test_the_log_has_scores_and_contact_sheets(run: Path) -> None:
    results = read_json(run / "base" / "evaluation" / "val-step0000004" / "results.json")
    assert results is not None and results["complete"]
    (scene,) = results["scenes"]
    scores = logged(run / "base", "val/reconx/psnr")
    assert sorted(scores) == [2, 3, 4, 5]
    assert scores[4] == pytest.approx(results["mean"]["reconx"]["psnr"], rel=1e-5)
    for half in HALVES:
        assert logged(run / "base", f"val/filled_render/psnr_{half}")[4] == pytest.approx(
            results[f"mean_{half}"]["filled_render"]["psnr"], rel=1e-5
        )
    shown = {}
    for file in (run / "base").glob("events.out.tfevents*"):
        events = EventAccumulator(str(file), size_guidance={"images": 0}).Reload()
        assert {tag for tag in events.Tags()["images"]} <= {f"evaluation/{scene['key']}"}
        for tag in events.Tags()["images"]:
            shown |= {event.step: event for event in events.Images(tag)}
    assert sorted(shown) == [2, 3, 4, 5]
    sheet = run / "base" / "evaluation" / "val-step0000004" / "scenes" / scene["key"] / "contact_sheet.png"
    assert shown[4].encoded_image_string == sheet.read_bytes()
    assert (shown[4].width, shown[4].height) == Image.open(io.BytesIO(sheet.read_bytes())).size
    assert {path.name for path in sheet.parent.iterdir()} == {"contact_sheet.png", "result.json"}  # no videos


def test_a_failure_ends_no_run_and_training_is_what_it_would_be_without(
    tmp_path: Path, shards: Path, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = run_of(tmp_path / "run", shards, 5, every_n_validations=3)
    config = yaml.safe_load(path.read_text())
    (evaluation,) = [c for c in config["trainer"]["callbacks"] if c["class_path"].endswith("EvaluationCallback")]
    evaluation["init_args"]["config"]["pose_policy"] = "aligned"  # and no one to align
    path.write_text(yaml.safe_dump(config))
    main(["fit", "-c", str(path)])
    failed = re.findall(r"the evaluation of held-out clips failed at step (\d); training goes on", caplog.text)
    assert failed == ["3", "5"] and evaluated(tmp_path / "run") == []
    with_it, without = (load_file(folder / "base" / "weights.safetensors") for folder in (run, tmp_path / "run"))
    assert all(torch.equal(with_it[name], without[name]) for name in without)


def trainer_at(step: int, **options: Any) -> Any:
    """A trainer in a training run whose every second batch is followed by a validation; an epoch has six."""
    loop = SimpleNamespace(total_batch_idx=step - 1, batch_idx=(step - 1) % 6)
    settings = {"val_check_batch": 2, "check_val_every_n_epoch": None, "num_training_batches": 6, "max_steps": 20}
    settings |= {"sanity_checking": False, "state": SimpleNamespace(fn="fit"), "current_epoch": (step - 1) // 6}
    return SimpleNamespace(fit_loop=loop, global_step=step, **(settings | options))


def test_validations_are_counted_by_batches_or_by_epochs() -> None:
    assert [validations_so_far(trainer_at(step)) for step in (2, 4, 20)] == [1, 2, 10]
    each = {"check_val_every_n_epoch": 1}
    assert [validations_so_far(trainer_at(step, **each)) for step in (2, 6, 8)] == [1, 3, 4]
    second = {"check_val_every_n_epoch": 2, "val_check_batch": 6}
    assert [validations_so_far(trainer_at(step, **second)) for step in (12, 24)] == [1, 2]
    endless = {"check_val_every_n_epoch": 1, "val_check_batch": math.inf}
    assert validations_so_far(trainer_at(7, **endless)) == 2


def test_a_run_is_evaluated_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(
        EvaluationCallback, "_evaluate", lambda self, trainer, module, split: seen.append(trainer.global_step)
    )
    for step, options, callback in (
        (2, {}, EvaluationCallback()),
        (4, {}, EvaluationCallback(during_fit=True)),
        (6, {"sanity_checking": True}, EvaluationCallback(during_fit=True)),
        (8, {"state": SimpleNamespace(fn="validate")}, EvaluationCallback(every_n_validations=3)),
        (10, {}, EvaluationCallback(during_fit=True, every_n_validations=3)),
        (12, {}, EvaluationCallback(during_fit=True, every_n_validations=3)),
        (20, {}, EvaluationCallback(during_fit=True, every_n_validations=3)),
    ):
        trainer = trainer_at(step, **options)
        callback.on_validation_end(trainer, torch.nn.Module())  # type: ignore[arg-type]
    assert seen == [4, 8, 12, 20]


def test_a_sharded_model_is_asked_for_the_frames_that_an_evaluation_asks_for() -> None:
    clip = procedural_clip(1, frames=4, size=(32, 32), points=64)
    seen: list[Clip] = []

    class Watched:
        def generate(self, clip: Clip, generator: torch.Generator) -> torch.Tensor:
            seen.append(clip)
            return torch.rand(clip.frames.shape, generator=generator)

    for policy in ("dataset", "interpolated"):
        config = EvaluationConfig(
            FitConfig(steps=1, loss=LossWeights(lpips=0.0)), pose_policy=policy, metrics=("psnr",), two_views=False
        )
        apart = generate_together([clip], Watched(), config, torch.device("cpu"))
        result = evaluate_scene(clip, Watched(), config)
        together, alone = seen[-2:]
        assert torch.allclose(together.cameras.world_to_camera, alone.cameras.world_to_camera, atol=1e-6)
        assert torch.allclose(apart.frames[clip.key][1:-1], result.given.images[1:-1], atol=0.51 / 255)
    assert not torch.allclose(seen[0].cameras.world_to_camera, seen[2].cameras.world_to_camera, atol=1e-3)


def test_parts_have_tags_of_their_own() -> None:
    means = {"mean": {"reconx": {"psnr": 20.0}}, "mean_covered": {"reconx": {"psnr": 22.0}}, "mean_uncovered": {}}
    assert flatten_scores(means, "test") == {"test/reconx/psnr": 20.0, "test/reconx/psnr_covered": 22.0}
    with pytest.raises(ConfigurationError, match="every_n_validations"):
        EvaluationCallback(every_n_validations=0)
