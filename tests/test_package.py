"""The wheel is whole: what it holds, and the demo's first steps with nothing but it, from an empty folder."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from command_parsers import ROOT

from reconx_pl.files.shipped import shipped

DATA = {"reconx_pl.configs": "configs", "reconx_pl.data.protocols": "data/protocols"}
PROGRAM = """
import shlex, sys
from importlib.metadata import entry_points
(reconx,) = {one.value: one for one in entry_points(group="console_scripts", name="reconx")}.values()
for line in sys.stdin.read().splitlines():
    sys.argv[1:] = shlex.split(line)
    try:
        reconx.load()()
    except SystemExit as ended:
        assert not ended.code, (line, ended.code)
import reconx_pl
print("ran with", reconx_pl.__file__)
"""
# of a clip of few pixels: the kernels are not compiled for it
FIRST_STEPS = """
procedural data/procedural-train --clips 1 --points 2048 --height 32 --width 32
train fit -c configs/procedural_v1/base.yaml --trainer.max_steps 1 --data.batch_size 1 \
 --data.train data/procedural-train --data.val data/procedural-train
weights verify reconx-mini
protocols list
"""


def setup() -> configparser.ConfigParser:
    read = configparser.ConfigParser()
    read.read(ROOT / "setup.cfg")
    return read


def code() -> list[str]:
    """Every file of code, by its path in the package's folder."""
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "reconx_pl").rglob("*.py"))


def test_every_folder_of_the_package_is_named() -> None:
    folders = {str(Path(file).parent).replace("/", ".") for file in code()}
    named = setup()["options"]["packages"].split()
    assert sorted(folders | DATA.keys()) == named, "setup.cfg: options.packages"
    assert {f"{package} = {folder}" for package, folder in DATA.items()} == set(
        setup()["options"]["package_dir"].strip().splitlines()
    )


def test_shipped_files_are_found_beside_the_package_in_a_checkout() -> None:
    assert shipped("configs/stage1.yaml") == ROOT / "configs" / "stage1.yaml"
    assert shipped("data/protocols").is_dir() and not shipped("configs/absent.yaml").exists()


def quietly(*command: str | Path, cwd: Path, given: str = "", **environment: str) -> str:
    """Run a command of this interpreter; its output, which a failure shows."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RECONX_INDICES")}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=kept | environment,
        input=given,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel that is built out of a source distribution, as an index would have both; needs no network."""
    pytest.importorskip("setuptools", reason="needs setuptools to build a wheel without the network")
    folder = tmp_path_factory.mktemp("wheel")
    checkout = folder / "checkout"
    for name in ("reconx_pl", "configs", "data/protocols"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    sdist = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    quietly("-c", sdist, cwd=checkout)
    (archive,) = folder.glob("*.tar.gz")
    offline = ("--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check")
    quietly("-m", "pip", "wheel", *offline, "-w", folder, archive, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_has_code_configs_protocols_and_types(wheel: Path) -> None:
    expected = {*code(), "reconx_pl/py.typed"}
    expected |= {f"reconx_pl/assets/reconx-mini.{ending}" for ending in ("safetensors", "safetensors.sha256", "md")}
    for package, folder in DATA.items():
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
        inside = package.replace(".", "/")
        expected |= {f"{inside}/{path.relative_to(ROOT / folder).as_posix()}" for path in files}
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found == expected


def test_packing_training_and_the_shipped_model_with_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    offline = ("--no-deps", "--no-index", "--disable-pip-version-check")
    quietly("-m", "pip", "install", *offline, "--target", site, wheel, cwd=empty)
    said = quietly("-c", PROGRAM, cwd=empty, given=FIRST_STEPS.strip(), PYTHONPATH=str(site), NUMBA_DISABLE_JIT="1")
    assert f"ran with {site / 'reconx_pl' / '__init__.py'}" in said
    run = empty / "runs" / "procedural-v1" / "none-0"
    assert (run / "weights.safetensors").is_file() and (run / "checkpoints" / "last.ckpt").exists()
    assert "base:" not in (run / "config.yaml").read_text().splitlines()
    assert "reconx-mini: verified" in said and "re10k-easy" in said and "mipnerf360-3" in said
