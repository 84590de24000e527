"""Config files: layers, where they are looked for, and what is said of those that are wrong."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from reconx_pl.errors import ConfigurationError
from reconx_pl.files.configs import find_config, read_config
from reconx_pl.files.shipped import shipped


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    """Two layers in a folder of their own, and a file over both."""
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers" / "model.yaml").write_text(
        "model: {width: 8, lr: 1e-4, part: {class_path: a.A, init_args: {x: 1, y: 2}}}\nlist: [1, 2]\n"
    )
    (tmp_path / "layers" / "trainer.yaml").write_text("trainer: {steps: 5, devices: auto}\nmodel: {width: 16}\n")
    path = tmp_path / "stage.yaml"
    path.write_text(
        "base: [layers/model.yaml, layers/trainer.yaml]\ntrainer: {steps: 9, logger: null}\n"
        "model: {part: {init_args: {x: 3}}}\nlist: [7]\n"
    )
    return path


def test_a_file_goes_over_its_bases(layers: Path) -> None:
    assert read_config(layers) == {
        "model": {"width": 16, "lr": 1e-4, "part": {"class_path": "a.A", "init_args": {"x": 3, "y": 2}}},
        "trainer": {"steps": 9, "devices": "auto", "logger": None},
        "list": [7],
    }


def test_a_base_has_bases_of_its_own_relative_to_itself(layers: Path) -> None:
    deeper = layers.parent / "deeper"
    deeper.mkdir()
    (deeper / "own.yaml").write_text("base: ../stage.yaml\ntrainer: {steps: 10}\n")
    assert read_config(deeper / "own.yaml") == read_config(layers) | {
        "trainer": {"steps": 10, "devices": "auto", "logger": None}
    }


def test_another_class_takes_no_arguments_of_the_former(layers: Path) -> None:
    (layers.parent / "own.yaml").write_text("base: stage.yaml\nmodel: {part: {class_path: b.B, init_args: {z: 1}}}\n")
    assert read_config(layers.parent / "own.yaml")["model"]["part"] == {"class_path": "b.B", "init_args": {"z": 1}}


def test_a_list_can_be_made_longer(layers: Path) -> None:
    (layers.parent / "own.yaml").write_text("base: stage.yaml\nlist+: [8]\ntrainer: {parts+: [a]}\n")
    (layers.parent / "over.yaml").write_text("base: own.yaml\nlist+: 9\ntrainer: {parts+: [b]}\n")
    assert read_config(layers.parent / "own.yaml")["list"] == [7, 8]
    whole = read_config(layers.parent / "over.yaml")
    assert whole["list"] == [7, 8, 9] and whole["trainer"]["parts+"] == ["a", "b"]
    (layers.parent / "anew.yaml").write_text("base: over.yaml\nlist: [1]\ntrainer: {parts: [c]}\n")
    assert read_config(layers.parent / "anew.yaml")["list"] == [1]
    assert read_config(layers.parent / "anew.yaml")["trainer"] == {
        "steps": 9, "devices": "auto", "logger": None, "parts": ["c"]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("base: layers/absent.yaml", r"own\.yaml: its base layers/absent\.yaml does not exist"),
        (
            "base: [stage.yaml, 3]",
            r"own\.yaml: `base` is the name of a file or a list of names, got \['stage.yaml', 3\]",
        ),
        ("base: {a: b}", r"own\.yaml: `base` is the name"),
        ("base: own.yaml", r"own\.yaml: its bases go in a circle: \S+own\.yaml -> \S+own\.yaml$"),
        ("base: round.yaml", r"own\.yaml: its bases go in a circle: \S+own\.yaml -> \S+round\.yaml -> \S+own\.yaml$"),
        ("base: broken.yaml", r"broken\.yaml: cannot read this config"),
        ("base: layers", r"own\.yaml: its base layers does not exist"),
        ("- a", r"own\.yaml: a config is a mapping"),
        ("", r"own\.yaml: a config is a mapping"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(layers: Path, content: str, says: str) -> None:
    (layers.parent / "round.yaml").write_text("base: own.yaml\n")
    (layers.parent / "broken.yaml").write_text("a: [1\n")
    path = layers.parent / "own.yaml"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=says):
        read_config(path)


def test_a_config_of_the_package_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert find_config("configs/stage1.yaml") == shipped("configs/stage1.yaml")
    assert caplog.messages == [
        f"configs/stage1.yaml is not here; taken from the package: {shipped('configs/stage1.yaml')}"
    ]
    assert read_config("configs/stage1.yaml")["model"]["stage"] == "image_attention"
    (tmp_path / "own.yaml").write_text("base: configs/stage1.yaml\ndata: {batch_size: 2}\n")
    assert (
        read_config("own.yaml")["data"]["batch_size"] == 2 and read_config("own.yaml")["trainer"]["max_steps"] == 2000
    )
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "stage1.yaml").write_text("a: 1\n")
    assert read_config("configs/stage1.yaml") == {"a": 1}  # the one that is here comes first


def test_an_earlier_name_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("stage1", "stage2", "evaluate", "reconstruct"):
        assert find_config(f"configs/demo_{name}.yaml") == shipped(f"configs/demo/{name}.yaml")


def test_what_is_nowhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "absent.yaml",
        "configs/absent.yaml",
        "configs",
        str(tmp_path / "configs/stage1.yaml"),
        "{a: 1}" * 999,
    ):
        assert find_config(name) is None
    with pytest.raises(ConfigurationError, match=r"^configs/absent\.yaml does not exist"):
        read_config("configs/absent.yaml")
