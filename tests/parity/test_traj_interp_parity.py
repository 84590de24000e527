"""ViewCrafter's camera path against recorded runs of the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_kits import golden_kits
from safetensors.torch import load_file

from reconx_pl.geometry.clip_paths import viewcrafter_path
from reconx_pl.types import Cameras

POSE, PIXELS = 2e-6, 1e-3  # tolerances of the kit, whose input poses are float32


def _cases() -> list[Any]:
    return [
        pytest.param(path, case, id=f"{path.stem}-{case}")
        for path in golden_kits("traj_interp_*.json")
        for case in json.loads(path.read_text())["cases"]
    ]


@pytest.mark.skipif(not _cases(), reason="needs the golden kits traj_interp_*.json")
@pytest.mark.parametrize(("path", "case"), _cases() or [(None, None)])
def test_recorded_path(path: Path, case: str) -> None:
    settings = json.loads(path.read_text())["cases"][case]
    kit = {
        name.removeprefix(f"{case}."): value
        for name, value in load_file(path.with_suffix(".safetensors")).items()
        if name.startswith(f"{case}.")
    }
    intrinsics = torch.eye(3, dtype=torch.float64).repeat(settings["poses"], 1, 1)
    intrinsics[:, [0, 1], [0, 1]] = kit["focals"].double()
    intrinsics[:, :2, 2] = kit["principal_points"].double()
    pose = torch.linalg.inv(kit["c2ws"].double())
    found = viewcrafter_path(Cameras(pose, intrinsics, settings["H"], settings["W"]), settings["n_inserts"])

    assert len(found) == settings["num_views"]
    torch.testing.assert_close(found.camera_to_world, kit["path"].double(), atol=POSE, rtol=0)
    focal = found.intrinsics[:, [0, 1], [0, 1]]
    torch.testing.assert_close(focal, kit["focal_length"].double().expand(-1, 2), atol=PIXELS, rtol=0)
    torch.testing.assert_close(found.intrinsics[:, :2, 2], kit["principal_point"].double(), atol=PIXELS, rtol=0)
    # what its point renderer is given: left, up, forward, for row vectors
    turned = found.world_to_camera.clone()
    turned[:, :2] *= -1
    torch.testing.assert_close(turned[:, :3, :3].transpose(1, 2), kit["R"].double(), atol=POSE, rtol=0)
    torch.testing.assert_close(turned[:, :3, 3], kit["T"].double(), atol=POSE, rtol=0)
