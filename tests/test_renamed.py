"""Names of earlier versions: every one finds what it is called now, says so once, and never wins in silence."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_parsers import ROOT, train_parser
from jsonargparse import ArgumentParser
from safetensors.torch import save_file

from reconx_pl import renamed as table
from reconx_pl.cli.arguments import renamed_arguments, renamed_command
from reconx_pl.cli.evaluate_command import build_evaluate_parser, evaluate_main
from reconx_pl.cli.main import build_parser, main
from reconx_pl.diffusion.weights.building import build_network
from reconx_pl.errors import ConfigurationError
from reconx_pl.files.weights import read_tensors
from reconx_pl.renamed import new_class_path, renamed
from reconx_pl.training.callbacks.saved_config import RunConfig
from reconx_pl.training.checkpointing.network_weights import save_network
from reconx_pl.training.module import ReconXModule
from reconx_pl.training.runs import load_run


@pytest.fixture(autouse=True)
def nothing_told_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_told", set())


# --- class paths


def old_class_paths() -> list[str]:
    lines = (Path(__file__).parent / "old_class_paths.txt").read_text().splitlines()[1:]
    modules = (line.split(": ") for line in lines)
    return [f"{module}.{name}" for module, names in modules for name in names.split()]


def test_every_class_of_before_is_found() -> None:
    lost = []
    for path in old_class_paths():
        new = new_class_path(path)
        module, _, name = new.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name).__module__ == module
        except (ImportError, AttributeError):
            found = False
        lost += [] if found else [f"{path} -> {new}"]
    assert lost == []


def test_every_module_of_the_table_is_there() -> None:
    assert [new for new in table.MODULES.values() if importlib.util.find_spec(f"{table.PACKAGE}{new}") is None] == []


def test_the_table_in_words_has_every_key() -> None:
    text = (ROOT / "docs" / "conventions.md").read_text()
    rows = [re.findall(r"[\w.]+", line) for line in text.partition("## Old names")[2].splitlines() if line[:1] == "|"]
    words = [{part for word in row for part in word.split(".")} for row in rows]
    pairs = [pair for keys in (*table.KEYS.values(), *table.VALUES.values(), table.COMMANDS) for pair in keys.items()]
    assert [pair for pair in pairs if not any(set(pair) <= row for row in words)] == []


def test_a_class_path_of_today_stays() -> None:
    today = [new_class_path(path) for path in old_class_paths()]
    assert [new_class_path(path) for path in today] == today
    for path in ("torch.optim.AdamW", "own_package.conditioning.image_tokens.ClipImageTokens", "", "painting"):
        assert new_class_path(path) == path


# --- files


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            {"sampling": {"steps": 10, "view_scale": 7.5, "structure_scale": 1.0, "rescale": 0.7, "eta": 1.0}},
            {
                "sampling": {
                    **{"num_inference_steps": 10, "guidance_scale": 7.5, "structure_guidance_scale": 1.0},
                    **{"guidance_rescale": 0.7, "eta": 1.0},
                }
            },
        ),
        (
            {"painting": {"frames": 8, "around": 60, "second": 4}, "flight": "orbit", "flight_fps": 8},
            {"generation": {"frames": 8, "orbit_frames": 60, "end_condition_frame": 4}}
            | {"flythrough": "orbit", "flythrough_fps": 8},
        ),
        ({"flight_frames": 9}, {"flythrough_frames": 9}),
        (
            {"evaluation": {"fit": {"steps": 9, "known_view_weight": 20.0, "agreement": {"start": 0.3}}}},
            {"evaluation": {"fit": {"steps": 9, "input_view_weight": 20.0, "robust_weights": {"start": 0.3}}}},
        ),
        ({"capture": {"fit": {"agreement": None}}}, {"scene": {"fit": {"robust_weights": None}}}),
        ({"model": {"towers": "bf16"}}, {"model": {"frozen_encoder_precision": "bf16"}}),
        ({"fit": {"model": {"towers": "bf16"}}}, {"fit": {"model": {"frozen_encoder_precision": "bf16"}}}),
        ({"poses": {"painted": "aligned"}}, {"poses": {"generated": "aligned"}}),
        (
            {"benchmark": "own", "painted": "aligned", "ckpt": "r"},
            {"protocol": "own", "generated": "aligned", "model": "r"},
        ),
        ({"stages": ["photographs", "painting"]}, {"stages": ["photographs", "generation"]}),
        ({"run": "r", "weights": None}, {"model": "r"}),
        ({"run": "runs/r", "weights": "runs/r/checkpoints/last.ckpt"}, {"model": "runs/r/checkpoints/last.ckpt"}),
        (
            {
                "model": {
                    "sampling": {"class_path": "reconx_pl.diffusion.painter.SamplingConfig", "init_args": {"steps": 1}}
                }
            },
            {
                "model": {
                    "sampling": {
                        "class_path": "reconx_pl.diffusion.sampling.config.SamplingConfig",
                        "init_args": {"num_inference_steps": 1},
                    }
                }
            },
        ),
        (
            {"trainer": {"callbacks": [{"class_path": "reconx_pl.training.callbacks.PaintedClips"}]}},
            {"trainer": {"callbacks": [{"class_path": "reconx_pl.training.callbacks.callbacks.GeneratedClips"}]}},
        ),
    ],
    ids=lambda content: next(iter(content)),
)
def test_keys_by_the_name_that_they_stand_under(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert renamed(old) == new
    assert renamed(new) == new


def test_what_only_looks_like_an_old_name_stays() -> None:
    content = {
        "trainer": {"benchmark": None, "steps": 3},
        "fit": {"steps": 5},
        "model": {"network": {"init_args": {"schedule": {"steps": 1000, "rescale_end": 0.7}}}},
        "estimator": {"class_path": "own.Estimator", "init_args": {"weights": "w", "run": 1, "agreement": 2}},
        "entries": {"run": {"scene": "painting"}, 3: {"second": 1}},
    }
    assert renamed(content) == content


# --- command lines


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("photos --painting.frames 8 -o out", "photos --generation.frames 8 -o out"),
        ("photos --painting.around=60 --flight orbit", "photos --generation.orbit_frames=60 --flythrough orbit"),
        ("--sampling.steps 10", "--sampling.num_inference_steps 10"),
        ("--fit.steps 10", "--fit.steps 10"),
        ("--model.towers=bf16", "--model.frozen_encoder_precision=bf16"),
        ("--evaluation.fit.agreement.start 0.3", "--evaluation.fit.robust_weights.start 0.3"),
        ("--fit.agreement.help", "--fit.robust_weights.help"),
        ("--capture.short_side 0", "--scene.short_side 0"),
        ("--stages photographs painting --resume", "--stages photographs generation --resume"),
        ("--benchmark own --painted aligned --ckpt r", "--protocol own --generated aligned --model r"),
        ("--run r --out o", "--model r --out o"),
        ("--weights r/w.safetensors --out o", "--model r/w.safetensors --out o"),
        ("--run r --out o --weights r/w.safetensors", "--out o --model r/w.safetensors"),
        ("--weights=./r/../r/w.ckpt --run r", "--model ./r/../r/w.ckpt"),
        (
            "--estimator reconx_pl.geometry.colmap_estimator.ColmapEstimator --estimator.weights w",
            "--estimator reconx_pl.geometry.estimators.colmap.ColmapEstimator --estimator.weights w",
        ),
        (
            "fit --trainer.callbacks+=reconx_pl.training.callbacks.PaintedClips --trainer.callbacks.out o",
            "fit --trainer.callbacks+=reconx_pl.training.callbacks.callbacks.GeneratedClips --trainer.callbacks.out o",
        ),
        ("-c painting -- --painting.frames", "-c painting -- --generation.frames"),
    ],
)
def test_options(old: str, new: str) -> None:
    assert renamed_arguments(old.split()) == new.split()
    assert renamed_arguments(new.split()) == new.split()


def test_options_in_braces() -> None:
    assert renamed_arguments(["--sampling", "{steps: 10, eta: 1}"]) == [
        "--sampling",
        "{num_inference_steps: 10, eta: 1}",
    ]
    unchanged = ["--fit", "{steps:   10}", "--caption", "{not yaml", "--sampling={num_inference_steps: 2}"]
    assert renamed_arguments(unchanged) == unchanged


def test_the_command_of_protocols(capfd: pytest.CaptureFixture[str]) -> None:
    assert renamed_command(["benchmarks", "show", "benchmarks"]) == ["protocols", "show", "benchmarks"]
    assert renamed_command(["pack", "benchmarks"]) == ["pack", "benchmarks"]
    assert renamed_command([]) == []
    with pytest.raises(SystemExit, match="0"):
        main(["benchmarks", "--help"])
    assert "reconx [options] protocols" in capfd.readouterr().out


# --- one line each


def test_one_line_for_each_old_name(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        renamed_command(["benchmarks", "--painting.frames", "8", "--painting.frames", "9", "--fit.steps", "1"])
        renamed({"model": {"sampling": {"steps": 1}}, "x": ["reconx_pl.training.guards.FiniteGuard"] * 2})
    assert caplog.messages == [
        "`reconx benchmarks` is now `reconx protocols`",
        "`--painting.frames` is now `--generation.frames`",
        "`model.sampling.steps` is now `model.sampling.num_inference_steps`",
        "`reconx_pl.training.guards.FiniteGuard` is now `reconx_pl.training.callbacks.guards.FiniteGuard`",
    ]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


# --- both names at once


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--painting.frames 8 --generation.frames 9", "`--painting.frames` and `--generation.frames`"),
        ("--run r --ckpt r", "`--run` and `--ckpt` are names of one thing, now `--model`: give one of them"),
        ("--model r --weights r/w", "`--model` and `--weights`"),
        ("--run r --weights elsewhere/w", "run r and weights elsewhere/w: both are now `--model`"),
        ("--run r --weights r2/w", "these weights are not in that run"),
        ("--sampling={steps: 1, num_inference_steps: 2}", "`steps` and `num_inference_steps`"),
    ],
)
def test_both_names_on_a_command_line_are_refused(given: str, said: str) -> None:
    arguments = [given] if "{" in given else given.split()
    with pytest.raises(ConfigurationError) as error:
        renamed_arguments(arguments)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        {"painting": {"frames": 8}, "generation": {"frames": 8}},
        {"fit": {"robust_weights": {}, "agreement": {}}},
        {"run": "r", "weights": "elsewhere"},
        {"run": "r", "ckpt": "r"},
    ],
    ids=lambda content: next(iter(content)),
)
def test_both_names_in_a_file_are_refused(content: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="now `"):
        renamed(content)


def test_a_refusal_ends_a_command_with_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "both.yaml"
    file.write_text("painting: {frames: 8}\ngeneration: {frames: 8}\n")
    with pytest.raises(SystemExit, match="error: `painting` and `generation` are names of one thing"):
        main(["reconstruct", "photos", "-o", "out", "--config", str(file)])
    with pytest.raises(SystemExit, match="error: `--run` and `--ckpt` are names of one thing"):
        evaluate_main(["--run", "a", "--ckpt", "b"])


# --- the parsers


def test_an_old_evaluation_parses_as_the_new_one(tmp_path: Path) -> None:
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text("painted: interpolated\nevaluation: {fit: {known_view_weight: 2e1}}\n")
    new.write_text("generated: interpolated\nevaluation: {fit: {input_view_weight: 2e1}}\n")
    fixed = ["--data", "d", "--out", "o", "--estimator"]
    before = ["--benchmark", "own", *fixed, "reconx_pl.geometry.plane_sweep_estimator.PlaneSweepEstimator"]
    before += ["--sampling.steps", "3", "--evaluation.fit.agreement.start", "0.3", "--config", str(old)]
    today = ["--protocol", "own", *fixed, "reconx_pl.geometry.estimators.plane_sweep_estimator.PlaneSweepEstimator"]
    today += ["--sampling.num_inference_steps", "3", "--evaluation.fit.robust_weights.start", "0.3"]
    parser = build_evaluate_parser(protocol=True)
    first = parser.parse_args(renamed_arguments(before))
    second = parser.parse_args([*today, "--config", str(new)])
    first.pop("config"), second.pop("config")
    assert first.generated == "interpolated" and first.sampling.num_inference_steps == 3
    assert first == second


def test_an_old_reconstruction_parses_as_the_new_one(tmp_path: Path) -> None:
    old = tmp_path / "old.yaml"
    old.write_text("painting: {frames: 8, height: 128}\nfit: {agreement: {start: 0.3}}\nflight_frames: 20\n")
    before = ["reconstruct", "p", "-o", "o", "--painting.width=64", "--stages", "painting", "--config", str(old)]
    today = ["reconstruct", "p", "-o", "o", "--generation.width=64", "--generation.frames=8"]
    today += ["--generation.height=128", "--stages", "generation", "--fit.robust_weights.start=0.3"]
    parser = build_parser()
    first = parser.parse_args(renamed_command(before)).reconstruct
    second = parser.parse_args([*today, "--flythrough_frames=20"]).reconstruct
    first.pop("config"), second.pop("config")
    assert first == second


OLD_STAGE = """
model:
  network:
    class_path: reconx_pl.diffusion.model.ReconXDiffusion
    init_args:
      unet: {in_channels: 384, out_channels: 192, model_channels: 32, channel_mult: [1, 2], num_res_blocks: 1,
        attention_strides: [1, 2], num_head_channels: 8, context_dim: 32}
      autoencoder:
        class_path: reconx_pl.diffusion.autoencoder.PixelUnshuffleAutoencoder
        init_args: {factor: 8, gain: 2.0}
      image_tokens:
        class_path: reconx_pl.conditioning.image_tokens.SmallImageTokens
        init_args:
          config: {frames: 4, width: 32, image_size: 32, resampler_width: 32, heads: 1}
      text_tokens:
        class_path: reconx_pl.conditioning.text_tokens.LearnedTextTokens
        init_args: {tokens: 8, width: 32}
      structure: {points: 64, tokens: 8, width: 32}
      schedule: {steps: 1000, prediction: sample}
  stage: structure
  sampling: {steps: 10, eta: 0.0, view_scale: 1.5, structure_scale: 2.0, rescale: 0.5, last_step: corrected}
  init_from: null
  towers: '32'
"""
OLD_RUN = """
trainer:
  logger:
    class_path: reconx_pl.training.safe_logger.SafeTensorBoardLogger
    init_args: {save_dir: runs/demo, name: stage2}
  callbacks:
  - class_path: reconx_pl.training.safe_checkpoint.SafeModelCheckpoint
    init_args: {dirpath: runs/demo/stage2/checkpoints}
  - class_path: reconx_pl.training.preemption.PreemptionCallback
  - class_path: reconx_pl.training.callbacks.ThroughputCallback
    init_args: {every_n_steps: 20}
  - class_path: reconx_pl.training.callbacks.ExportWeights
    init_args: {path: runs/demo/stage2/weights.safetensors}
data: {train: data/procedural-train, val: data/procedural-val}
"""


def test_an_old_training_configuration_parses(tmp_path: Path) -> None:
    file = tmp_path / "stage.yaml"
    file.write_text(OLD_STAGE + OLD_RUN)
    more = ["--model.sampling.steps", "5", "--trainer.callbacks+=reconx_pl.training.callbacks.PaintedClips"]
    more += ["--trainer.callbacks.out", "clips"]
    parsed = train_parser().parse_args(renamed_arguments(["fit", "-c", str(file), *more])).fit
    assert parsed.model.sampling.num_inference_steps == 5 and parsed.model.sampling.guidance_scale == 1.5
    assert parsed.model.network.init_args.schedule.steps == 1000
    assert [callback.class_path.rpartition(".")[2] for callback in parsed.trainer.callbacks] == [
        *("SafeModelCheckpoint", "PreemptionCallback", "ThroughputCallback", "ExportWeights", "GeneratedClips")
    ]
    assert parsed.trainer.logger.class_path == "reconx_pl.training.callbacks.safe_logger.SafeTensorBoardLogger"


# --- what earlier versions wrote


def built(content: dict[str, Any]) -> ReconXModule:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ReconXModule, "model")
    return parser.instantiate_classes(parser.parse_object({"model": content})).model


def test_an_old_run_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = built(renamed(yaml.safe_load(OLD_STAGE)["model"], ["model"]))
    save_network(module.network, tmp_path / "weights.safetensors")
    (tmp_path / "config.yaml").write_text(OLD_STAGE + OLD_RUN)
    loaded = load_run(tmp_path)
    assert loaded.sampling.num_inference_steps == 10 and loaded.sampling.structure_guidance_scale == 2.0
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), loaded.parameters(), strict=True))


def test_an_old_config_json_builds() -> None:
    described = yaml.safe_load(OLD_STAGE)["model"]["network"]
    network = build_network(described, "config.json")
    assert type(network.image_tokens).__name__ == "SmallImageTokens"


def test_a_run_that_goes_on_keeps_its_old_configuration(tmp_path: Path) -> None:
    file = tmp_path / "stage.yaml"
    file.write_text(OLD_STAGE + OLD_RUN)
    parser = train_parser()._subcommands_action._name_parser_map["fit"]
    parsed = parser.parse_args(["-c", str(file)])
    old = yaml.safe_load(parser.dump(parsed, skip_none=False))
    old["model"]["towers"] = old["model"].pop("frozen_encoder_precision")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(old))
    assert RunConfig(parser, parsed)._set_aside(path) is False
    assert "towers" in path.read_text()


def test_resume_reads_old_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"photographs": ["a.jpg"], "geometry": "colmap", "no_diffusion": True, "flight": "orbit"}
    settings |= {"painting": {"frames": 8, "around": 0}, "fit": {"known_view_weight": 3.0}, "sampling": {"steps": 4}}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    seen = []

    def stop(photographs: object, out: object, config: Any, *_: object, **__: object) -> None:
        seen.append(config)
        raise ConfigurationError("far enough")

    monkeypatch.setattr("reconx_pl.cli.reconstruct.reconstruct", stop)
    monkeypatch.setattr("reconx_pl.cli.reconstruct.named_estimator", lambda *_: None)
    with pytest.raises(SystemExit, match="far enough"):
        main(["reconstruct", "-o", str(tmp_path), "--resume"])
    assert seen[0].generation.frames == 8 and seen[0].flythrough == "orbit" and seen[0].fit.input_view_weight == 3.0


def test_old_names_of_tensors(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["image_tokens.tower.visual.proj", "image_tokens.resampler.latents", "unet.out.0.weight"]
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "w.safetensors")
    read = read_tensors(tmp_path / "w.safetensors")
    assert set(read) == {"image_tokens.encoder.visual.proj", *names[1:]}
    assert caplog.messages == ["`image_tokens.tower.*` is now `image_tokens.encoder.*`"]
