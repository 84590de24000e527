"""scene.ply through plyfile, the library that the code of 3DGS and most tools read it with: no code of ours decodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from splat_scenes import random_gaussians

from reconx_pl.splatting.io.ply import save_ply
from reconx_pl.types import Gaussians

plyfile = pytest.importorskip("plyfile", reason="plyfile is not installed: pip install 'reconx_pl[dev]'")


def columns(vertex: np.ndarray, *names: str) -> np.ndarray:
    return np.stack([np.asarray(vertex[name], dtype=np.float64) for name in names], axis=-1)


def covariances(scales: np.ndarray, quaternions: np.ndarray) -> np.ndarray:
    """[N, 3, 3] of standard deviations [N, 3] and quaternions [N, 4] wxyz, by scipy, which takes xyzw."""
    from scipy.spatial.transform import Rotation

    axes = Rotation.from_quat(quaternions[:, [1, 2, 3, 0]]).as_matrix() * scales[:, None]
    return axes @ axes.transpose(0, 2, 1)


def expected_covariances(scene: Gaussians) -> np.ndarray:
    """The same by hand, from the quaternion as rotations are defined by it."""
    w, x, y, z = torch.nn.functional.normalize(scene.quaternions.double(), dim=1).unbind(1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    rotation = torch.stack(rows, dim=1).view(-1, 3, 3)
    squares = torch.diag_embed(torch.exp(2 * scene.log_scales.double()))
    return (rotation @ squares @ rotation.transpose(1, 2)).numpy()


@pytest.mark.parametrize("degree", [0, 1, 3])
def test_plyfile_decodes_the_same_gaussians(tmp_path: Path, degree: int) -> None:
    scene = random_gaussians(31, sh_degree=degree)
    read = plyfile.PlyData.read(str(save_ply(scene, tmp_path / "scene.ply")))
    assert [element.name for element in read.elements] == ["vertex"] and not read.text and read.byte_order == "<"
    vertex, rest = read["vertex"], 3 * ((degree + 1) ** 2 - 1)
    assert vertex.count == 31
    assert [(item.name, item.val_dtype) for item in vertex.properties] == [
        (name, "f4")
        for name in (
            *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"),
            *(f"f_rest_{number}" for number in range(rest)),
            *("opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
        )
    ]
    assert np.array_equal(columns(vertex, "x", "y", "z"), scene.means.double().numpy())
    opacity = 1 / (1 + np.exp(-np.asarray(vertex["opacity"], dtype=np.float64)))
    np.testing.assert_allclose(opacity, scene.opacity_logits.double().sigmoid().numpy(), rtol=1e-12)
    scales = np.exp(columns(vertex, "scale_0", "scale_1", "scale_2"))
    np.testing.assert_allclose(scales, scene.log_scales.double().exp().numpy(), rtol=1e-12)
    found = covariances(scales, columns(vertex, "rot_0", "rot_1", "rot_2", "rot_3"))
    np.testing.assert_allclose(found, expected_covariances(scene), rtol=1e-9, atol=1e-15)
    base = columns(vertex, "f_dc_0", "f_dc_1", "f_dc_2")
    assert np.array_equal(base, scene.sh[:, 0].double().numpy())
    if rest:  # as 3DGS reads them: channel by channel
        higher = columns(vertex, *(f"f_rest_{number}" for number in range(rest))).reshape(31, 3, -1)
        assert np.array_equal(higher.transpose(0, 2, 1), scene.sh[:, 1:].double().numpy())
