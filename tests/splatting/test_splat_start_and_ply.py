"""The Gaussians that a fit starts from, and the file that a scene is kept in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from splat_scenes import random_gaussians, ring_cameras

from reconx_pl.errors import BadDataError, BadSceneError, ConfigurationError
from reconx_pl.splatting.initialise import InitialiseConfig, gaussians_from_points
from reconx_pl.splatting.io.ply import load_ply, save_ply
from reconx_pl.splatting.renderers.cpu import CpuRenderer
from reconx_pl.types import Gaussians, PointCloud


def _grid(spacing: float = 0.05, side: int = 5) -> PointCloud:
    axis = torch.arange(side) * spacing
    points = torch.cartesian_prod(axis, axis, torch.zeros(1))
    colors = torch.rand(len(points), 3, generator=torch.Generator().manual_seed(0))
    return PointCloud(points, colors, torch.ones(len(points)))


def test_scales_are_the_rms_of_three_neighbour_distances() -> None:
    cloud = _grid()
    scene = gaussians_from_points(cloud, ring_cameras(2, 64))
    scales = scene.log_scales.exp().reshape(5, 5, 3)
    torch.testing.assert_close(scales[2, 2], torch.full((3,), 0.05))  # inside: three neighbours at the spacing
    torch.testing.assert_close(scales[0, 0], torch.full((3,), 0.05 * ((1 + 1 + 2) / 3) ** 0.5))  # corner
    assert scene.sh_degree == 3 and not scene.sh[:, 1:].any()
    torch.testing.assert_close(scene.opacity_logits.sigmoid(), torch.full((25,), 0.5))


def test_color_of_the_start_is_that_of_the_points() -> None:
    cloud = _grid(spacing=0.4, side=3)
    cloud = replace(cloud, points=cloud.points - torch.tensor([0.4, 0.4, 0.0]))
    cameras = ring_cameras(1, 65, spread=0.0)
    scene = gaussians_from_points(cloud, cameras, InitialiseConfig(opacity=0.99, max_width=0.01))
    image = CpuRenderer().render(scene, cameras).color[0]
    torch.testing.assert_close(image[:, 32, 32], 0.99 * cloud.colors[4], atol=2e-3, rtol=0)


def test_far_and_coincident_points_are_kept_in_bounds() -> None:
    cameras = ring_cameras(2, 64)
    points = torch.cat([torch.zeros(5, 3), torch.tensor([[0.9, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, -40.0]])])
    cloud = PointCloud(points, torch.full((7, 3), 0.5), torch.ones(7))
    config = InitialiseConfig(max_width=0.05, min_pixels=0.1)
    width = gaussians_from_points(cloud, cameras, config).log_scales.exp()[:, 0]
    focal = float(cameras.intrinsics[0, 0, 0])
    torch.testing.assert_close(width[0], torch.tensor(0.1 * 3.0 / focal))  # coincident: a tenth of a pixel
    assert float(width[5]) <= 0.05 * 4.0 * 64 / focal  # a lone point
    assert torch.isfinite(width).all()  # the last point is behind every camera


@pytest.mark.parametrize(
    ("points", "message"),
    [(torch.zeros(0, 3), "empty"), (torch.zeros(3, 3), "at least 4"), (torch.full((5, 3), torch.nan), "5 of 5 points")],
)
def test_unusable_clouds(points: torch.Tensor, message: str) -> None:
    cloud = PointCloud(points, torch.zeros_like(points), torch.ones(len(points)))
    with pytest.raises(BadSceneError, match=message):
        gaussians_from_points(cloud, ring_cameras(2, 8))


def test_unusable_start_options() -> None:
    for options in ({"sh_degree": 4}, {"opacity": 1.0}, {"max_width": 0.0}):
        with pytest.raises(ConfigurationError):
            InitialiseConfig(**options)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_ply_round_trip_is_exact(tmp_path: Path, degree: int) -> None:
    scene = random_gaussians(37, sh_degree=degree)
    loaded = load_ply(save_ply(scene, tmp_path / "new" / "scene.ply"))
    for name in ("means", "quaternions", "log_scales", "opacity_logits", "sh"):
        assert torch.equal(getattr(loaded, name), getattr(scene, name)), name
    cameras, black = ring_cameras(1, 24), torch.zeros(3)
    renderer = CpuRenderer()
    assert torch.equal(
        renderer.render(loaded, cameras, background=black).color,
        renderer.render(scene, cameras, background=black).color,
    )
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["scene.ply"]  # no temporary left


def test_ply_header_is_that_of_3dgs(tmp_path: Path) -> None:
    data = save_ply(random_gaussians(4), tmp_path / "scene.ply").read_bytes()
    header = data[: data.index(b"end_header\n")].decode().splitlines()
    names = [line.split()[-1] for line in header if line.startswith("property float ")]
    assert header[:3] == ["ply", "format binary_little_endian 1.0", "element vertex 4"]
    assert names == (
        ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
        + [f"f_rest_{i}" for i in range(45)]
        + ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    )


def test_ply_of_gsplat_means_the_same(tmp_path: Path) -> None:
    from gsplat import exporter

    scene = random_gaussians(20)
    path = tmp_path / "gsplat.ply"
    exporter.export_splats(
        scene.means, scene.log_scales, scene.quaternions, scene.opacity_logits, scene.sh[:, :1], scene.sh[:, 1:],
        save_to=str(path),
    )  # fmt: skip
    loaded = load_ply(path)
    for name in ("means", "quaternions", "log_scales", "opacity_logits", "sh"):
        assert torch.equal(getattr(loaded, name), getattr(scene, name)), name


def test_bad_ply_files_are_named(tmp_path: Path) -> None:
    good = save_ply(random_gaussians(5), tmp_path / "good.ply").read_bytes()
    cases = {
        "truncated": good[:-10],
        "is not a PLY": b"solid something",
        "little-endian": good.replace(b"binary_little_endian", b"ascii"),
        "missing": good.replace(b"property float opacity", b"property float density"),
        "not a float": good.replace(b"property float opacity", b"property uchar opacity"),
    }
    for message, data in cases.items():
        path = tmp_path / "bad.ply"
        path.write_bytes(data)
        with pytest.raises(BadDataError, match=message) as caught:
            load_ply(path)
        assert "bad.ply" in str(caught.value)


def test_scene_with_nan_is_not_written(tmp_path: Path) -> None:
    scene = random_gaussians(5)
    scene.means[0] = float("nan")
    with pytest.raises(BadSceneError, match="not written"):
        save_ply(scene, tmp_path / "nan.ply")
    assert not list(tmp_path.iterdir())
    assert isinstance(scene, Gaussians)
