"""The commands for a finished scene, as the shell calls them: what they write, what they refuse."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from raw_scenes import HEIGHT, VIEWS, WIDTH, assert_same_cameras, known_cameras, write_posed

from reconx_pl.cli.main import main
from reconx_pl.data.formats.readers import only_scene
from reconx_pl.splatting.io.scene_files import load_scene, save_scene
from reconx_pl.types import Cameras, Gaussians
from reconx_pl.visualization.video import read_mp4


def ring(views: int = VIEWS) -> Cameras:
    """Cameras 3 m from the origin on a third of a circle, all looking at it, -y up."""
    angle = torch.linspace(-1.0, 1.0, views, dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64).repeat(views, 1, 1)
    pose[:, 0, 0], pose[:, 0, 2] = angle.cos(), angle.sin()
    pose[:, 2, 0], pose[:, 2, 2] = -angle.sin(), angle.cos()
    pose[:, 2, 3] = 3.0
    return Cameras(pose, known_cameras().intrinsics[:1].repeat(views, 1, 1), HEIGHT, WIDTH)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A red ball of Gaussians at the origin."""
    generator = torch.Generator().manual_seed(0)
    count = 60
    means = 0.2 * torch.randn(count, 3, generator=generator)
    sh = torch.zeros(count, 4, 3)
    sh[:, 0] = torch.tensor([1.7, -1.7, -1.7])
    return save_scene(
        Gaussians(
            means=means - means.mean(dim=0),
            quaternions=torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1),
            log_scales=torch.full((count, 3), math.log(0.1)),
            opacity_logits=torch.full((count,), 3.0),
            sh=sh,
        ),
        tmp_path / "scene.ply",
    )


@pytest.fixture
def posed(tmp_path: Path) -> Path:
    return write_posed(tmp_path / "posed", ring())


def test_export_there_and_back(
    scene: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    main(["export", str(scene), str(tmp_path / "scene.splat")])
    main(["export", str(tmp_path / "scene.splat"), str(tmp_path / "back.ply")])
    said = "".join(capfd.readouterr().err.split())  # a narrow console breaks the line
    assert "scene.splat:0.0MB" in said and "view dependence of degree 1 is left out" in caplog.text
    assert (tmp_path / "scene.splat").stat().st_size == 60 * 32
    back, original = load_scene(tmp_path / "back.ply"), load_scene(scene)
    assert back.sh_degree == 0 and sorted(back.means.tolist()) == sorted(original.means.tolist())


def test_export_overwrites_only_when_it_is_told(scene: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scene.splat"
    out.write_bytes(b"mine")
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(scene), str(out)])
    assert "--overwrite" in str(stopped.value.code) and out.read_bytes() == b"mine"
    main(["export", str(scene), str(out), "--overwrite"])
    assert len(load_scene(out)) == 60
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(scene), str(tmp_path / "scene.obj")])
    assert ".ply or .splat" in str(stopped.value.code)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("format", ["transforms", "colmap"])
def test_export_cameras_with_the_points_of_the_scene(
    scene: Path, posed: Path, tmp_path: Path, format: str, capfd: pytest.CaptureFixture[str]
) -> None:
    main(["export-cameras", str(posed), str(tmp_path / "out"), "--format", format, "--points", str(scene)])
    assert f"{VIEWS} cameras, 60 points" in " ".join(capfd.readouterr().err.split())
    found = only_scene(tmp_path / "out")
    assert found.dataset == format
    assert_same_cameras(found.cameras, ring(), pose=1e-12)
    if format == "colmap":
        assert found.cloud is not None
        torch.testing.assert_close(found.cloud.points, load_scene(scene).means)
        assert (found.cloud.colors[:, 0] > 0.95).all() and (found.cloud.colors[:, 1:] < 0.05).all()
    else:
        assert b"element vertex 60" in (tmp_path / "out/points.ply").read_bytes()


@pytest.mark.parametrize(("path", "count"), [("interpolated", 7), ("orbit", 7), ("spiral", 7), ("views", VIEWS)])
def test_render_writes_color_and_depth(scene: Path, posed: Path, tmp_path: Path, path: str, count: int) -> None:
    out = tmp_path / "videos" / "fly-through.mp4"
    options = ["--path", path, "--frames", "7", "--fps", "5", "--depth", "--device", "cpu"]
    main(["render", str(scene), "--cameras", str(posed), "--out", str(out), *options])
    frames, fps = read_mp4(out)
    assert frames.shape == (count, HEIGHT, WIDTH, 3) and fps == 5
    middle = frames[:, HEIGHT // 2 - 2 : HEIGHT // 2 + 2, WIDTH // 2 - 2 : WIDTH // 2 + 2].astype(int)
    assert (middle[..., 0] > 180).all() and (middle[..., 1:] < 60).all()  # every path looks at the ball
    assert (frames[:, 0, 0] < 20).all()
    depth, _ = read_mp4(tmp_path / "videos" / "fly-through.depth.mp4")
    assert depth.shape == frames.shape
    assert (depth[:, 0, 0] < 20).all() and (depth[:, HEIGHT // 2, WIDTH // 2].max(axis=-1) > 60).all()
    assert sorted(file.name for file in out.parent.iterdir()) == ["fly-through.depth.mp4", "fly-through.mp4"]


def test_render_of_another_size_keeps_the_picture(scene: Path, posed: Path, tmp_path: Path) -> None:
    arguments = ["render", str(scene), "--cameras", str(posed), "--path", "views", "--background", "[0,0,1]"]
    main([*arguments, "--out", str(tmp_path / "a.mp4"), "--width", str(2 * WIDTH)])
    frames, _ = read_mp4(tmp_path / "a.mp4")
    assert frames.shape == (VIEWS, 2 * HEIGHT, 2 * WIDTH, 3)
    assert (frames[:, 0, 0, 2] > 200).all()  # blue behind it
    red = np.argwhere((frames[2, :, :, 0] > 150) & (frames[2, :, :, 2] < 80))
    np.testing.assert_allclose(red.mean(axis=0), [HEIGHT, WIDTH], atol=4)  # in the middle
    assert not (tmp_path / "a.depth.mp4").exists()


def test_render_refuses_before_it_renders(
    scene: Path, posed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.depth.mp4").write_bytes(b"mine")
    start = ["render", str(scene), "--cameras", str(posed), "--frames", "4"]
    for arguments, words in (
        (["--out", str(tmp_path / "a.mp4"), "--depth"], "a.depth.mp4 is there already"),
        (["--out", str(tmp_path / "a.gif")], "ends in .mp4"),
        (["--out", str(tmp_path / "b.mp4"), "--fps", "0"], "positive frame rate"),
        (["--out", str(tmp_path / "b.mp4"), "--width", "0"], "cannot resize"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*start, *arguments])
        assert words in str(stopped.value.code)
    assert "rendering" not in capfd.readouterr().err
    assert not list(tmp_path.glob("*.mp4.*")) and not (tmp_path / "a.mp4").exists()
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit) as stopped:
            main([*start, "--out", str(tmp_path / "b.mp4"), "--device", "cuda"])
        assert "CUDA" in str(stopped.value.code)


def test_view_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["view", str(tmp_path / "absent.ply"), "--port", "0"])
    assert "absent.ply: no such file" in str(stopped.value.code)
