"""ViewCrafter's camera path against recorded runs of the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from golden_kits import Held, KitTensors, described, golden_kits, read_kit

from reconx_pl.geometry.clip_paths import viewcrafter_path
from reconx_pl.types import Cameras

POSE, PIXELS = 2e-6, 1e-3  # tolerances of the kit, whose input poses are float32


def _cases() -> list[Any]:
    return [
        pytest.param(path, case, id=f"{path.stem}-{case}")
        for path in golden_kits("traj_interp_*.json")
        for case in described(path)["cases"]
    ]


@pytest.mark.skipif(not _cases(), reason="needs the golden kits traj_interp_*.json")
@pytest.mark.parametrize(("path", "case"), _cases() or [(None, None)])
def test_recorded_path(path: Path, case: str) -> None:
    description, tensors = read_kit(path, exact=True)
    settings = description["cases"][case]
    kit = KitTensors(tensors.under(f"{case}."), f"{path.stem}, {case},")
    intrinsics = torch.eye(3, dtype=torch.float64).repeat(settings["poses"], 1, 1)
    intrinsics[:, [0, 1], [0, 1]] = kit["focals"].double()
    intrinsics[:, :2, 2] = kit["principal_points"].double()
    pose = torch.linalg.inv(kit["c2ws"].double())
    found = viewcrafter_path(Cameras(pose, intrinsics, settings["H"], settings["W"]), settings["n_inserts"])

    assert len(found) == settings["num_views"]
    # what its point renderer is given: left, up, forward, for row vectors
    turned = found.world_to_camera.clone()
    turned[:, :2] *= -1
    compared = {
        "path": (found.camera_to_world, POSE),
        "focal_length": (found.intrinsics[:, [0, 1], [0, 1]], PIXELS),
        "principal_point": (found.intrinsics[:, :2, 2], PIXELS),
        "R": (turned[:, :3, :3].transpose(1, 2), POSE),
        "T": (turned[:, :3, 3], POSE),
    }
    with Held(kit) as held:
        for name, (ours, tolerance) in compared.items():
            for _, theirs in held.of([name]):
                torch.testing.assert_close(ours, theirs.double().expand_as(ours), atol=tolerance, rtol=0)
