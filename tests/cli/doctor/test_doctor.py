"""``reconx doctor`` as a whole: what it says of a machine, its exit code, and that broken packages do not break it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
from command_parsers import ROOT

from reconx_pl.__main__ import main as reconx
from reconx_pl.cli import main as cli
from reconx_pl.cli.doctor import command, examination
from reconx_pl.cli.doctor.findings import USES, Finding, Need, Use, need_of
from reconx_pl.metrics import lpips_weights


def doctor(*arguments: str, packages: Path | None = None, home: Path) -> subprocess.CompletedProcess[str]:
    """``reconx doctor`` in a process, with packages that come before the installed ones."""
    path = os.pathsep.join(map(str, [packages, ROOT] if packages else [ROOT]))
    environment = os.environ | {"PYTHONPATH": path, "XDG_CACHE_HOME": str(home), "TORCH_HOME": str(home)}
    environment.pop(lpips_weights.ENVIRONMENT, None)
    return subprocess.run(
        [sys.executable, "-m", "reconx_pl", "doctor", *arguments],
        env=environment, cwd=home, capture_output=True, text=True, check=False,
    )  # fmt: skip


def package(folder: Path, name: str, program: str) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(program)
    return folder


def test_a_torchvision_of_another_torch_is_recognised(tmp_path: Path) -> None:
    """It takes torchmetrics, and with that every other command, down when it is imported."""
    broken = package(tmp_path / "p", "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    home = tmp_path / "home"
    home.mkdir()
    result = doctor("--json", packages=broken, home=home)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    found = {finding["name"]: finding for finding in json.loads(result.stdout)["findings"]}
    pair = found["torch + torchvision"]
    assert pair["status"] == "missing" and "operator torchvision::nms does not exist" in pair["text"]
    assert pair["remedy"] == "pip install --upgrade torch torchvision"
    assert "cores" in found["processor"]["text"]  # the rest is looked at all the same
    assert found["lpips-vgg"]["status"] == "missing" and found["lpips-vgg"]["remedy"] == "reconx weights fetch lpips"
    assert str(home / "reconx_pl") in found["cache"]["text"]
    assert result.stderr.startswith("error: missing for --use basics: torch + torchvision, lpips-vgg, lpips-alex")
    assert list(home.iterdir()) == []  # it looks and leaves nothing


def test_a_broken_torch_leaves_what_does_not_need_it(tmp_path: Path) -> None:
    broken = package(tmp_path / "p", "torch", "raise OSError('libcudart.so.13: cannot open shared object file')")
    result = doctor(packages=broken, home=tmp_path)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "import torch fails (libcudart.so.13: cannot open shared object file)" in result.stdout
    assert "missing  processor, GPU: not looked at: OSError: libcudart" in result.stdout
    assert "-> mend the packages above, then run reconx doctor again" in result.stdout
    assert "ok       temporary files" in result.stdout


def found(monkeypatch: pytest.MonkeyPatch, *findings: Finding) -> None:
    def examined(use: Use, *options: Any) -> list[Finding]:
        return list(findings)

    monkeypatch.setattr(command, "examination", examined)


OK = Finding("disk", "data", "ok", "72 GB")
WARNING = Finding("machine", "GPU", "warning", "none", "buy one")
MISSING = Finding("weights", "lpips", "missing", "nowhere", "reconx weights fetch lpips")


def test_warnings_do_not_fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found(monkeypatch, OK, WARNING)
    cli.main(["doctor"])
    assert (
        capsys.readouterr().out
        == "disk\n  ok       data: 72 GB\nmachine\n  warning  GPU: none\n           -> buy one\n"
    )
    command.main(["--json", "--use", "train"])
    content = json.loads(capsys.readouterr().out)
    assert (content["use"], content["complete"], len(content["findings"])) == ("train", True, 2)


@pytest.mark.parametrize("run", [lambda args: cli.main(["doctor", *args]), command.main])
def test_what_is_missing_fails(run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found(monkeypatch, OK, MISSING)
    with pytest.raises(SystemExit) as stopped:
        run(["--json", "--use", "all"])
    assert stopped.value.code == "error: missing for --use all: lpips"
    assert json.loads(capsys.readouterr().out)["complete"] is False


@pytest.mark.parametrize("arguments", [[], ["--use", "train", "--json"], ["--verify", "--folder", "elsewhere"]])
def test_its_own_parser_is_that_of_reconx(arguments: list[str]) -> None:
    own = vars(command.build_parser().parse_args(arguments))
    parser = cli.build_parser()
    parsed = vars(parser.instantiate_classes(parser.parse_args(["doctor", *arguments]))["doctor"])
    assert {name: str(value) for name, value in own.items()} == {name: str(value) for name, value in parsed.items()}


def test_reconx_is_the_doctor_or_the_rest(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert "reconx = reconx_pl.__main__:main" in setup["options.entry_points"]["console_scripts"]
    found(monkeypatch, OK)
    for arguments, said in ((["doctor"], "disk"), (["weights", "verify", "--folder", "nowhere", "setup.cfg"], "setup")):
        monkeypatch.setattr(sys, "argv", ["reconx", *arguments])
        monkeypatch.chdir(ROOT)
        with contextlib.suppress(SystemExit):
            reconx()
        assert capsys.readouterr().out.startswith(said)


@pytest.mark.parametrize("use", USES)
def test_every_line_is_ok_or_says_what_mends_it(use: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    lines = list(examination.examination(use, tmp_path / "weights"))
    assert {line.topic for line in lines} == {"packages", "machine", "weights", "disk"}
    assert all((line.status == "ok") == (line.remedy == "") for line in lines)
    base = [line.status for line in lines if line.name == "dynamicrafter-512-interp"]
    assert base == {"basics": [], "train": ["missing"], "all": ["missing"]}.get(use, ["warning"])


def test_a_finding_has_a_remedy_where_it_is_not_ok() -> None:
    with pytest.raises(ValueError, match="remedy"):
        Finding("disk", "data", "missing", "full")
    with pytest.raises(ValueError, match="remedy"):
        Finding("disk", "data", "ok", "free", "delete something")


@pytest.mark.parametrize(
    ("use", "needs", "need"),
    [
        ("basics", {"basics": "required"}, "required"),
        ("train", {"basics": "required"}, "required"),
        ("train", {"evaluate": "required"}, None),
        ("evaluate", {"evaluate": "useful", "train": "required"}, "useful"),
        ("all", {"evaluate": "useful", "train": "required"}, "required"),
        ("all", {}, None),
    ],
)
def test_need(use: Use, needs: dict[Use, Need], need: Need | None) -> None:
    assert need_of(use, needs) == need
