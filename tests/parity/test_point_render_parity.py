"""Clouds against the images of pytorch3d's renderer as ViewCrafter sets it up, for every ``point_render_*`` kit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from golden_kits import KitTensors, described, golden_kits, not_held

from reconx_pl.geometry.rendering.backend import Backend
from reconx_pl.geometry.rendering.points import render_points
from reconx_pl.geometry.rendering.rendered import Rendered
from reconx_pl.types import Cameras, PointCloud

KITS = golden_kits("point_render_*.json")
CASES = [(kit, case) for kit in KITS for case in described(kit)["cases"]]
# The kits' hint: pixels where a hit is decided by less, or the order of two depths, may differ; at most 1 % of all do.
MARGIN_HIT, MARGIN_ORDER = 1e-3, 1e-5
COLOR, DEPTH, ELSEWHERE = 2e-4, 1e-5, 0.01

pytestmark = pytest.mark.skipif(
    not KITS, reason="needs golden kits point_render_*: set RECONX_GOLDEN to the whole collection"
)


class Case:
    """A cloud, its cameras and their images."""

    def __init__(self, kit: Path, name: str) -> None:
        settings = described(kit)["cases"][name]
        path = kit.with_suffix(".npz")
        if not path.is_file():
            not_held(path.name, kit.name)
        with np.load(path) as stored:
            arrays = KitTensors({key: torch.from_numpy(stored[key]) for key in stored.files}, path.name)
        of_cloud = name if f"{name}.points" in arrays else name.rpartition("_")[0]  # dense_k3 is of dense
        points, colors = (arrays[f"{of_cloud}.{part}"].float() for part in ("points", "colors"))
        w2c, intrinsics = (arrays[f"{name}.{part}"].float() for part in ("w2c", "K"))
        self.color, self.alpha, self.depth, margin_hit, margin_order = (
            arrays[f"{name}.{part}"].float() for part in ("color", "alpha", "depth", "margin_hit", "margin_order")
        )
        self.cloud = PointCloud(points, colors, torch.ones(len(points)))
        self.cameras = Cameras(w2c, intrinsics, settings["H"], settings["W"])
        self.options = {name: settings[name] for name in ("radius", "points_per_pixel")}
        self.safe = (margin_hit >= MARGIN_HIT) & (margin_order >= MARGIN_ORDER)
        # as many as the kit itself counts
        self.least_safe = settings.get("safe_fraction", 0.9) - 1e-6

    def render(self, backend: Backend, **other: float) -> Rendered:
        return render_points(self.cloud, self.cameras, backend=backend, **(self.options | other))

    def off(self, seen: Rendered) -> torch.Tensor:
        """Largest difference of colour or alpha at every pixel: [V, H, W]."""
        color = (seen.color.permute(0, 2, 3, 1) - self.color).abs().amax(-1)
        return torch.maximum(color, (seen.coverage - self.alpha).abs())


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0].stem}-{case[1]}")
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*request.param)


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_images_are_the_original_ones(case: Case, backend: Backend) -> None:
    seen = case.render(backend)
    off, safe = case.off(seen), case.safe
    assert float(safe.double().mean()) >= case.least_safe and float(off[safe].max()) <= COLOR
    assert float((off > COLOR).float().mean()) <= ELSEWHERE
    hit = case.depth >= 0
    assert torch.equal((seen.depth > 0)[safe], hit[safe])
    torch.testing.assert_close(seen.depth[safe & hit], case.depth[safe & hit], rtol=DEPTH, atol=0)


def test_wrong_settings_are_told_apart(case: Case) -> None:
    """The check above would say nothing if another radius passed it."""
    off = case.off(case.render("numba", radius=1.1 * case.options["radius"]))
    assert float((off > COLOR)[case.depth >= 0].float().mean()) > 0.05
