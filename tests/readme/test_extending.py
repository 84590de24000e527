"""docs/extending.md: its snippets run, and do what the page says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from extending import snippets

from reconx_pl.errors import BadSceneError
from reconx_pl.geometry.cameras import project
from reconx_pl.geometry.estimators.geometry_file import GeometryFile
from reconx_pl.splatting.renderers.base import Renderer


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the snippets define, run one after the other as a reader would."""
    found: dict[str, Any] = {}
    for number, block in enumerate(snippets()):
        exec(compile(block, f"docs/extending.md, snippet {number}", "exec"), found)
    return found


def test_the_module_of_the_page_is_found(documented_modules: list[str]) -> None:
    assert documented_modules == ["my_geometry.py"]


def test_own_geometry(names: dict[str, Any]) -> None:
    clip, found = names["clip"], names["found"]
    assert found.point_map.valid.all() and len(found.cloud) == 2 * 64 * 64
    _, depth = project(found.point_map.points[1].flatten(0, 1), clip.cameras[[-1]])
    torch.testing.assert_close(depth, torch.full_like(depth, 4.0))
    with pytest.raises(BadSceneError, match="posed scene"):
        names["Wall"](4.0).estimate(clip.images)


def test_geometry_of_another_program(names: dict[str, Any], tmp_path: Path) -> None:
    ends = names["clip"].cameras[[0, -1]]
    names["write_geometry"](
        tmp_path / "found.npz",
        names["clip"].depth.numpy(),
        ends.world_to_camera[:, :3].numpy(),
        ends.intrinsics.numpy(),
        ["a.png", "b.png"],
        np.full((2, 64, 64), 3.0),
    )
    images = names["clip"].images[[-1, 0]]
    found = GeometryFile(tmp_path / "found.npz").estimate(images, names=["photos/b.png", "photos/a.png"])
    torch.testing.assert_close(found.cameras.intrinsics, ends.intrinsics.float().flip(0))
    torch.testing.assert_close(found.cameras.world_to_camera, ends.world_to_camera.float().flip(0))
    assert found.point_map.confidence.max() == 3


def test_own_renderer(names: dict[str, Any]) -> None:
    renderer, result, clip = names["renderer"], names["result"], names["clip"]
    assert isinstance(renderer, Renderer) and names["picture"].shape == (1, 3, 64, 64)
    assert result.final_loss < result.history[0]
    larger, inner = names["resize_cameras"](clip.cameras[2], 128, 128), renderer.inner
    whole = inner.render(result.gaussians, larger)
    torch.testing.assert_close(names["picture"][0, :, 5, 7], whole.color[0, :, 10:12, 14:16].mean((1, 2)))
    small, drawn = renderer.render(result.gaussians, clip.cameras[2]), inner.render(result.gaussians, clip.cameras[2])
    opaque = (small.alpha > 0.9) & (drawn.alpha > 0.9)
    assert opaque.float().mean() > 0.5
    assert ((small.depth / drawn.depth)[opaque] - 1).abs().median() < 0.05


def test_own_metric(names: dict[str, Any]) -> None:
    clip, scored = names["clip"], names["scored"]
    generated = names["CrossFade"]().generate(clip, torch.Generator())
    error = (generated - clip.images).abs().mean((1, 2, 3))[1:-1].double()
    torch.testing.assert_close(scored.scores["generated"]["mae"], error, atol=2e-3, rtol=0)
    assert set(scored.scores["reconx"]) == {"psnr", "ssim", "mae"}
    means = names["means"].compute()
    torch.testing.assert_close(means["mae"], scored.scores["reconx"]["mae"].mean())
    suite = names["WithAbsoluteError"](("psnr",))
    half = torch.zeros(1, 16, 16, dtype=torch.bool)
    half[:, :8] = True
    black, grey = torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 0.25)
    grey[:, :, 8:] = 1.0
    assert suite(black, grey, half)["mae"].item() == pytest.approx(0.25)
