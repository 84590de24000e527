"""``--config`` of every command: layers, and the configs that come with the package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from command_parsers import train_parser

from reconx_pl.__main__ import main as reconx
from reconx_pl.cli.evaluate_command import build_evaluate_parser
from reconx_pl.cli.main import build_parser
from reconx_pl.cli.train import main as train
from reconx_pl.errors import ConfigurationError


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that a command is given in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_takes_layers(empty: Path) -> None:
    (empty / "own.yaml").write_text("base: configs/demo/evaluate.yaml\nclips: 2\n")
    evaluate = build_evaluate_parser().parse_args(["--config", "own.yaml", "--clips", "3"])
    assert (evaluate.clips, evaluate.evaluation.fit.input_view_weight) == (3, 3.0)
    (empty / "fast.yaml").write_text("base: configs/reconstruct_cpu.yaml\nfit: {steps: 7}\n")
    given = ["reconstruct", "photographs", "-o", "out", "--config", "fast.yaml"]
    reconstruct = build_parser().parse_args(given).reconstruct
    assert (reconstruct.short_side, reconstruct.fit.steps, reconstruct.fit.loss.lpips) == (256, 7, 0.0)


def test_later_files_and_options_win(empty: Path) -> None:
    (empty / "own.yaml").write_text("base: configs/stage2.yaml\ntrainer: {max_steps: 7}\n")
    files = ["-c", "own.yaml", "-c", "configs/trainer/fsdp.yaml"]
    config = train_parser().parse_args(["fit", *files, "--trainer.val_check_interval", "3"]).fit
    assert (config.trainer.max_steps, config.trainer.val_check_interval) == (7, 3)
    assert config.trainer.strategy.class_path.endswith("ShardedStrategy")
    assert config.model.network.init_args.unet.model_channels == 320


def test_content_in_the_place_of_a_file_is_taken_as_it_is(empty: Path) -> None:
    given = ["-c", "configs/stage1.yaml", "-c", "{trainer: {max_steps: 7}}"]
    assert train_parser().parse_args(["fit", *given]).fit.trainer.max_steps == 7


@pytest.mark.parametrize("command", [["fit"], ["plan"]])
def test_a_base_that_is_missing_ends_the_command_with_its_name(empty: Path, command: list[str]) -> None:
    (empty / "own.yaml").write_text("base: [configs/stage1.yaml, absent.yaml]\n")
    with pytest.raises(SystemExit) as stopped:
        train([*command, "-c", "own.yaml"])
    assert str(stopped.value.code).startswith("error: own.yaml: its base absent.yaml does not exist")
    with pytest.raises(ConfigurationError, match="its base absent"):
        build_evaluate_parser().parse_args(["--config", "own.yaml"])


def test_a_file_that_is_nowhere_is_refused(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        train_parser().parse_args(["fit", "-c", "configs/absent.yaml"])
    assert stopped.value.code == 2 and "configs/absent.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["train", "--help"], ["usage: reconx train ", "plan"]),
        (["train", "fit", "--help"], ["usage: reconx train ", "--trainer.max_steps"]),
        (["train", "plan", "--help"], ["usage: reconx train plan ", "--utilisation"]),
        (["evaluate", "--help"], ["usage: reconx evaluate ", "--shards", "--no-diffusion"]),
        (["evaluate", "--protocol", "llff", "--help"], ["usage: reconx evaluate ", "--allow_failed"]),
        (["--help"], ["    train ", "    evaluate "]),
    ],
)
def test_train_and_evaluate_are_commands_of_reconx(
    command: list[str], words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["reconx", *command])
    with pytest.raises(SystemExit) as stopped:
        reconx()
    printed = capsys.readouterr().out
    assert stopped.value.code == 0 and all(word in printed for word in words), printed[:300]
