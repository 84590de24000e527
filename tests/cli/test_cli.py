"""The command lines end to end: what they write, what they say, how they exit."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_parsers import ROOT
from PIL import Image
from safetensors.torch import save_file

from reconx_pl.cli import evaluate
from reconx_pl.cli.evaluate_command import evaluate_main
from reconx_pl.cli.main import main
from reconx_pl.data.procedural import procedural_views
from reconx_pl.data.shards.manifest import Manifest
from reconx_pl.data.shards.stream import read_clips
from reconx_pl.errors import BadWeightsError
from reconx_pl.evaluation.runner import EvaluationConfig
from reconx_pl.geometry.cameras import unproject
from reconx_pl.metrics import lpips_weights

SIDE = 32  # of what is packed; the photographs are larger, for the check needs matches
PHOTO = 128


def error_of(function: Callable[[], Any], capfd: pytest.CaptureFixture[str]) -> str:
    """The message with which a command ends; as the shell sees it: exit code 1, no traceback."""
    with pytest.raises(SystemExit) as stopped:
        function()
    assert isinstance(stopped.value.code, str)  # Python prints a string to stderr and exits with 1
    output = capfd.readouterr()
    assert "Traceback" not in output.err + output.out
    return stopped.value.code


def test_procedural_writes_shards_and_goes_on(tmp_path: Path) -> None:
    arguments = ["procedural", str(tmp_path), "--frames", "2", "--height", "32", "--width", "32", "--points", "64"]
    main([*arguments, "--clips", "1", "--first_seed", "7"])
    main([*arguments, "--clips", "2", "--first_seed", "7"])
    Manifest.load(tmp_path).verify(checksums=True)
    clips = list(read_clips(tmp_path))
    assert len(clips) == 2
    assert all(clip.images.shape == (2, 3, SIDE, SIDE) and clip.cloud is not None for clip in clips)


@pytest.fixture
def posed_scene(tmp_path: Path) -> Path:
    """Four small photographs of a procedural scene in the package's own layout, with points of the first view."""
    images, depth, cameras = procedural_views(3, [0.0, 0.1, 0.2, 0.3], (PHOTO, PHOTO))
    folder = tmp_path / "kitchen"
    (folder / "images").mkdir(parents=True)
    pixels = images.permute(0, 2, 3, 1).numpy()
    if pixels.dtype != np.uint8:
        pixels = (pixels * 255).round().astype(np.uint8)
    frames = []
    for index in range(4):
        Image.fromarray(pixels[index]).save(folder / "images" / f"{index}.jpg", quality=95)
        frames.append(
            {
                "file": f"images/{index}.jpg",
                "w": PHOTO,
                "h": PHOTO,
                "K": cameras.intrinsics[index].tolist(),
                "c2w": torch.linalg.inv(cameras.world_to_camera[index]).tolist(),
            }
        )
    (folder / "cameras.json").write_text(json.dumps({"frames": frames}))
    seen = depth[0] > 0
    points = unproject(depth[:1], cameras[:1])[0][seen]
    np.savez(folder / "points.npz", xyz=points.numpy(), rgb=pixels[0][seen.numpy()])
    return folder


def pack(scene: Path, out: Path) -> None:
    sizes = ["--options.frames", "4", "--options.height", "32", "--options.width", "32", "--options.points", "256"]
    main(["pack", str(scene), str(out), "--check", *sizes])


def test_pack_writes_shards_and_the_check(posed_scene: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "shards"
    pack(posed_scene, out)
    said = " ".join(capfd.readouterr().err.split())
    assert "1 clips packed, 0 were there, 0 skipped, 0 without a cloud" in said
    assert "median epipolar distance" in said
    (clip,) = read_clips(out)
    assert clip.images.shape == (4, 3, SIDE, SIDE)
    assert clip.cloud is not None and len(clip.cloud) == 256
    assert [path.suffix for path in (out / "check").iterdir()] == [".png"]
    pack(posed_scene, out)
    assert "0 clips packed, 1 were there" in " ".join(capfd.readouterr().err.split())


def test_pack_of_a_wrong_path_ends_with_a_message(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    message = error_of(lambda: main(["pack", str(tmp_path / "absent"), str(tmp_path / "out")]), capfd)
    assert message.startswith("error: ") and "absent" in message
    assert not list((tmp_path / "out").glob("*.tar"))


# --- weights


@pytest.fixture
def no_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Empty caches; downloads are recorded and give random weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(lpips_weights.ENVIRONMENT, raising=False)
    calls: list[str] = []

    def download(net: str) -> dict[str, torch.Tensor]:
        calls.append(net)
        return random_weights(net)

    monkeypatch.setattr(lpips_weights, "_from_torchvision", download)
    return calls


def random_weights(net: str) -> dict[str, torch.Tensor]:
    return {name: torch.rand(shape) for name, shape in lpips_weights._shapes(net).items()}


def put(folder: Path, names: dict[str, str]) -> None:
    folder.mkdir(parents=True)
    for net, name in names.items():
        weights = random_weights(net)
        torch.save(weights, folder / name) if name.endswith(".pth") else save_file(weights, folder / name)


@pytest.mark.parametrize("place", ["named", "cache", "hub"])
def test_weights_at_hand_are_not_fetched(
    place: str, no_download: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == "named":
        monkeypatch.setenv(lpips_weights.ENVIRONMENT, str(tmp_path / "mine"))
        put(tmp_path / "mine", lpips_weights.FILE_NAMES)
    elif place == "cache":
        put(tmp_path / "cache" / "reconx_pl" / "lpips", lpips_weights.FILE_NAMES)
    else:
        put(tmp_path / "torch" / "hub" / "checkpoints", lpips_weights.HUB_NAMES)
        monkeypatch.setattr(lpips_weights, "file_sha256", lambda path: path.stem.split("-")[-1])
    main(["weights", "fetch", "lpips"])
    assert no_download == []


def test_missing_weights_are_fetched_to_where_they_are_found(
    no_download: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["weights", "fetch", "lpips"])
    assert no_download == ["vgg", "alex"]
    monkeypatch.setenv(lpips_weights.ENVIRONMENT, str(tmp_path / "mine"))
    main(["weights", "fetch", "lpips"])
    assert no_download == ["vgg", "alex"] * 2
    assert lpips_weights.find_backbone("vgg").parent == tmp_path / "mine"
    main(["weights", "fetch", "lpips"])
    assert no_download == ["vgg", "alex"] * 2


def test_damaged_weights_are_replaced_but_never_named_ones(
    no_download: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path / "torch" / "hub" / "checkpoints" / lpips_weights.HUB_NAMES["alex"]
    hub.parent.mkdir(parents=True)
    hub.write_bytes(b"half a file")
    path = lpips_weights.provide_backbone("alex")
    assert no_download == ["alex"] and path == lpips_weights.find_backbone("alex") != hub
    named = tmp_path / "mine" / lpips_weights.FILE_NAMES["alex"]
    named.parent.mkdir()
    named.write_bytes(b"half a file")
    monkeypatch.setenv(lpips_weights.ENVIRONMENT, str(named.parent))
    with pytest.raises(BadWeightsError, match="cannot be read"):
        lpips_weights.provide_backbone("alex")
    assert named.read_bytes() == b"half a file" and no_download == ["alex"]


# --- evaluate.py


@pytest.fixture
def fake_evaluate(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for ``evaluate.evaluate``, with its signature; returns ``results``, records what it got."""
    seen: dict[str, Any] = {"results": {"complete": True, "expected": 1, "failed": {}, "missing": []}}

    @functools.wraps(evaluate.evaluate)
    def fake(**arguments: Any) -> dict[str, Any]:
        seen.update(arguments)
        arguments["progress"]("clip-7: fit", 50, 100)
        return seen["results"]

    monkeypatch.setattr(evaluate, "evaluate", fake)
    return seen


def test_evaluate_takes_a_config_and_options(
    fake_evaluate: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", str(ROOT / "configs" / "demo/evaluate.yaml")]
    evaluate_main([*arguments, "--shards", "null", "--scene", str(tmp_path), "--out", str(tmp_path / "report")])
    assert fake_evaluate["shards"] is None and fake_evaluate["scene"] == tmp_path
    assert fake_evaluate["out"] == tmp_path / "report" and fake_evaluate["model"] == "runs/demo/stage2"
    assert isinstance(fake_evaluate["evaluation"], EvaluationConfig)
    assert fake_evaluate["evaluation"].fit.steps == 200
    said = capfd.readouterr().err
    assert "clip-7: fit" in said and "50%" in said


def test_progress_is_no_option(fake_evaluate: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        evaluate_main(["--model", "a", "--out", "b", "--progress", "print"])
    assert stopped.value.code == 2
    with pytest.raises(SystemExit):
        evaluate_main(["--help"])
    helped = capfd.readouterr().out
    assert "--progress" not in helped and "--config" in helped and "--evaluation" in helped


@pytest.mark.parametrize(
    ("results", "words"),
    [
        (
            {"expected": 4, "failed": {"b": "BadSceneError: no cloud"}, "missing": ["d", "c"]},
            ["3 of 4", "b failed: BadSceneError: no cloud", "c is missing", "d is missing"],
        ),
        ({"expected": 0, "failed": {}, "missing": []}, ["nothing to evaluate"]),
    ],
)
def test_incomplete_evaluation_is_an_error(
    results: dict[str, Any], words: list[str], fake_evaluate: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    fake_evaluate["results"] = {"complete": False, **results}
    message = error_of(lambda: evaluate_main(["--model", "a", "--out", "b"]), capfd)
    assert all(word in message for word in words), message


# --- make


def test_make_installs_only_what_changed(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    for name in ("Makefile", "setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)

    def planned() -> str:
        result = subprocess.run(["make", "-n", "demo"], cwd=tmp_path, capture_output=True, text=True, check=True)
        return result.stdout

    assert "pip install" in planned()
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".installed").touch()
    fresh = planned()
    assert "pip install" not in fresh
    assert "reconx weights fetch lpips" in fresh and "evaluate.py --config configs/demo/evaluate.yaml" in fresh
