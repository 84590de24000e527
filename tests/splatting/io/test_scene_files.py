"""Scene files against gsplat's exporter, round trips that render the same, the bounds of the lossy one, bad files."""

from __future__ import annotations

import logging
import math
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from splat_scenes import random_gaussians, ring_cameras

from reconx_pl.errors import BadDataError, BadSceneError, ConfigurationError
from reconx_pl.splatting.initialise import SH_DC
from reconx_pl.splatting.io.ply import load_ply, save_ply
from reconx_pl.splatting.io.scene_files import load_scene, save_scene
from reconx_pl.splatting.io.splat import by_importance, load_splat, save_splat
from reconx_pl.splatting.renderers.cpu import CpuRenderer
from reconx_pl.types import Cameras, Gaussians

PARTS = ("means", "quaternions", "log_scales", "opacity_logits", "sh")


def gsplat_bytes(scene: Gaussians, form: str) -> bytes:
    """What gsplat's own exporter writes; it is plain Python and needs no CUDA."""
    exporter = pytest.importorskip("gsplat.exporter", reason="gsplat is not installed: nothing to compare with")
    return exporter.export_splats(
        scene.means, scene.log_scales, scene.quaternions, scene.opacity_logits, scene.sh[:, :1], scene.sh[:, 1:],
        format=form,
    )  # fmt: skip


def columns(data: bytes) -> dict[str, np.ndarray]:
    """The float columns of a binary PLY by name, read without the package."""
    header, _, body = data.partition(b"end_header\n")
    names = [line.split()[2].decode() for line in header.splitlines() if line.startswith(b"property float ")]
    table = np.frombuffer(body, "<f4").reshape(-1, len(names))
    return {name: table[:, column] for column, name in enumerate(names)}


def render(scene: Gaussians, cameras: Cameras | None = None) -> torch.Tensor:
    return CpuRenderer().render(scene, cameras or ring_cameras(3, 48), background=torch.zeros(3)).color


@pytest.mark.parametrize("degree", [1, 2, 3])  # the exporter cannot reshape the empty rest of degree 0
def test_ply_has_the_columns_of_gsplats_exporter(tmp_path: Path, degree: int) -> None:
    scene = random_gaussians(50, sh_degree=degree)
    ours, theirs = columns(save_ply(scene, tmp_path / "a.ply").read_bytes()), columns(gsplat_bytes(scene, "ply"))
    assert [name for name in ours if name not in ("nx", "ny", "nz")] == list(theirs)
    for name, values in theirs.items():
        np.testing.assert_array_equal(ours[name], values, err_msg=name)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_a_ply_of_gsplat_renders_the_same(tmp_path: Path, degree: int) -> None:
    scene = random_gaussians(60, sh_degree=degree)
    (tmp_path / "a.ply").write_bytes(gsplat_bytes(scene, "ply"))
    torch.testing.assert_close(render(load_scene(tmp_path / "a.ply")), render(scene), atol=1e-4, rtol=0)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_ply_round_trip_renders_the_same(tmp_path: Path, degree: int) -> None:
    scene = random_gaussians(60, sh_degree=degree)
    loaded = load_scene(save_scene(scene, tmp_path / "a.ply"))
    assert loaded.sh_degree == degree
    torch.testing.assert_close(render(loaded), render(scene), atol=1e-4, rtol=0)


def test_a_scene_of_several_blocks_keeps_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reconx_pl.splatting.io.ply._ROWS", 16)
    scene = random_gaussians(37)
    loaded = load_ply(save_ply(scene, tmp_path / "a.ply"))
    assert all(torch.equal(getattr(loaded, name), getattr(scene, name)) for name in PARTS)


def test_loading_takes_little_more_than_the_scene(tmp_path: Path) -> None:
    count = 150_000
    scene = random_gaussians(count)
    path = save_ply(scene, tmp_path / "a.ply")
    tracemalloc.start()
    try:
        load_ply(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * path.stat().st_size  # the result, one block, and marks of bad rows


def test_a_ply_with_nan_is_refused(tmp_path: Path) -> None:
    path = save_ply(random_gaussians(9), tmp_path / "a.ply")
    data = bytearray(path.read_bytes())
    body = data.index(b"end_header\n") + len(b"end_header\n")
    row = (len(data) - body) // 9
    data[body + 4 * row : body + 4 * row + 4] = np.float32("nan").tobytes()
    path.write_bytes(data)
    with pytest.raises(BadDataError, match=r"a\.ply: 1 of 9 Gaussians have NaN.* number 4"):
        load_ply(path)


# --- .splat


def flat_colors(count: int, seed: int = 0) -> Gaussians:
    """Round Gaussians of degree 0 with colours inside [0, 1] and opacities of 0.3 and more."""
    scene = random_gaussians(count, seed, sh_degree=0)
    opacity = 0.3 + 0.65 * torch.rand(count, generator=torch.Generator().manual_seed(seed))
    return replace(
        scene, log_scales=scene.log_scales[:, :1].expand(-1, 3).contiguous(), opacity_logits=torch.logit(opacity)
    )


def test_splat_rows_are_what_gsplat_writes(tmp_path: Path) -> None:
    scene = random_gaussians(64, sh_degree=1)
    form = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("color", "u1", 4), ("rotation", "u1", 4)])
    ours = np.frombuffer(save_splat(scene, tmp_path / "a.splat").read_bytes(), form)
    theirs = np.frombuffer(gsplat_bytes(scene, "splat"), form)  # in another order
    ours, theirs = ours[np.lexsort(ours["mean"].T)], theirs[np.lexsort(theirs["mean"].T)]
    np.testing.assert_array_equal(ours["mean"], theirs["mean"])
    np.testing.assert_allclose(ours["scale"], theirs["scale"], rtol=1e-6)
    # it cuts where we round; q and -q are one rotation
    assert np.abs(ours["color"].astype(int) - theirs["color"]).max() <= 1
    q, p = (rows["rotation"].astype(float) / 128 - 1 for rows in (ours, theirs))
    same = np.minimum(np.abs(q - p).max(axis=1), np.abs(q + p).max(axis=1))
    assert same.max() <= 1.01 / 128 + 1 / 256  # its +1 is 255


def test_splat_rows_come_by_importance(tmp_path: Path) -> None:
    scene = random_gaussians(40, sh_degree=0)
    loaded = load_splat(save_splat(scene, tmp_path / "a.splat"))
    importance = scene.opacity_logits.sigmoid() * scene.log_scales.sum(1).exp()
    order = importance.argsort(descending=True)
    assert torch.equal(loaded.means, scene.means[order]) and torch.equal(order, by_importance(scene))


def test_splat_renders_within_the_rounding_of_color_and_opacity(tmp_path: Path) -> None:
    """C = sum T a c: colours off by 1/510 move it by 1/510 at most. An alpha off by d moves it by T d times the
    difference of two colours, at most 1; d = a / (510 o), and the sum of T a is at most 1: 1 / (510 min o)."""
    scene = flat_colors(200)
    loaded = load_scene(save_scene(scene, tmp_path / "a.splat"))
    error = (render(loaded) - render(scene)).abs().max().item()
    lowest = scene.opacity_logits.sigmoid().min().item()
    assert 1e-4 < error < 1.05 * (1 + 1 / lowest) / 510  # 5 %: the second order


def test_splat_turns_a_gaussian_by_less_than_a_degree(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    axes = torch.cat([torch.eye(4), -torch.eye(4)])
    beside = (axes[:, None] + 0.04 * torch.randn(8, 100, 4, generator=generator)).reshape(-1, 4)  # +1 is not in 8 bits
    exact = torch.cat([axes, beside, torch.randn(2000, 4, generator=generator)])
    scene = replace(random_gaussians(len(exact), sh_degree=0), quaternions=exact)
    loaded = load_splat(save_splat(scene, tmp_path / "a.splat"))
    expected = torch.nn.functional.normalize(scene.quaternions[by_importance(scene)], dim=1).double()
    found = torch.nn.functional.normalize(loaded.quaternions, dim=1).double()
    angle = 2 * torch.arccos((expected * found).sum(1).abs().clamp(max=1))
    assert angle.max() < 2 * math.asin(2 / 256) + 1e-6


def test_splat_of_one_long_gaussian_renders_within_its_turn(tmp_path: Path) -> None:
    """A turn by t changes the Mahalanobis distance m of aspect s by at most 2 s t m, and m / 2 exp(-m / 2) <= 1 / e."""
    aspect = 3.0
    for seed in range(6):
        scene = replace(random_gaussians(1, seed, sh_degree=0), means=torch.zeros(1, 3))
        scene.log_scales = torch.tensor([[-1.5, -1.5 - math.log(aspect), -1.5 - math.log(aspect)]])
        loaded = load_splat(save_splat(scene, tmp_path / f"{seed}.splat"))
        error = (render(loaded) - render(scene)).abs().max().item()
        turn = 2 * math.asin(2 / 256)
        assert error < 2 / 510 + 2 * aspect * turn / math.e


def test_splat_says_what_it_drops(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        save_splat(random_gaussians(3, sh_degree=0), tmp_path / "a.splat")
        assert not caplog.records
        save_splat(random_gaussians(3, sh_degree=2), tmp_path / "b.splat")
    assert "the view dependence of degree 2 is left out" in caplog.text and "b.splat" in caplog.text


def test_extreme_values_survive(tmp_path: Path) -> None:
    scene = flat_colors(4)
    scene.opacity_logits = torch.tensor([-50.0, 50.0, 0.0, 1.0])
    scene.sh[0] = torch.tensor([9.0, -9.0, 0.0]) / SH_DC
    loaded = load_splat(save_splat(scene, tmp_path / "a.splat"))
    assert torch.isfinite(loaded.opacity_logits).all() and torch.isfinite(loaded.log_scales).all()
    clear = loaded.means.eq(scene.means[0]).all(dim=1)
    assert loaded.opacity_logits[clear].sigmoid().item() < 1 / 255  # which no renderer draws
    torch.testing.assert_close((SH_DC * loaded.sh[clear] + 0.5).flatten(), torch.tensor([1, 0, 128 / 255]))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: data[:-5], "not a multiple of 32"),
        (lambda data: b"", "has 0 bytes"),
        (lambda data: np.float32("nan").tobytes() + data[4:], "1 of 3 rows have NaN"),
        (lambda data: data[:12] + np.float32(-1).tobytes() + data[16:], "negative sizes"),
        (lambda data: data[:28] + bytes([128] * 4) + data[32:], "no rotation"),
    ],
)
def test_bad_splat_files_are_named(tmp_path: Path, edit, message: str) -> None:
    path = save_splat(random_gaussians(3, sh_degree=0), tmp_path / "bad.splat")
    path.write_bytes(edit(path.read_bytes()))
    with pytest.raises(BadDataError, match=message) as caught:
        load_splat(path)
    assert "bad.splat" in str(caught.value)


@pytest.mark.parametrize("name", PARTS)
def test_a_scene_with_nan_is_not_written(tmp_path: Path, name: str) -> None:
    scene = random_gaussians(3, sh_degree=0)
    getattr(scene, name)[1] = float("nan")
    for ending in ("ply", "splat"):
        with pytest.raises(BadSceneError, match="not written"):
            save_scene(scene, tmp_path / f"a.{ending}")
    assert not list(tmp_path.iterdir())


# --- the front door


def test_endings(tmp_path: Path) -> None:
    for call in (lambda path: load_scene(path), lambda path: save_scene(random_gaussians(2), path)):
        with pytest.raises(ConfigurationError, match=r"a\.obj: .*\.ply or \.splat"):
            call(tmp_path / "a.obj")
    save_scene(random_gaussians(2), tmp_path / "A.PLY")
    assert len(load_scene(tmp_path / "A.PLY")) == 2
    for ending in ("ply", "splat"):
        with pytest.raises(BadDataError, match="no such file"):
            load_scene(tmp_path / f"absent.{ending}")


def test_nothing_is_overwritten_in_silence(tmp_path: Path) -> None:
    path = save_scene(random_gaussians(2), tmp_path / "a.ply")
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="is there already.*--overwrite"):
        save_scene(random_gaussians(3), path)
    assert path.read_bytes() == before
    assert len(load_scene(save_scene(random_gaussians(3), path, overwrite=True))) == 3
