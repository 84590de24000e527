"""Gaussian scenes as ``.splat`` files, the 32-byte rows of antimatter15's browser viewer. Lossy.

A row is position (3 x float32), standard deviations (3 x float32, linear), red green blue opacity (4 x uint8, 255 = 1)
and the rotation w x y z (4 x uint8, 128 = 0, 0 = -1), little endian, no header. Rows come by importance, opacity times
volume, the largest first, so that a viewer has the most of a scene early.

What is lost: spherical harmonics above degree 0 (the view dependence of the colours), colours outside [0, 1], and all
beyond 8 bits of colour and opacity (at most 1/510 off) and of the rotation (each number at most 1/256 off, but +1 by
1/128, which changes the length more than the direction: a Gaussian turns by at most 2 asin(2/256) = 0.9 degrees).
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reconx_pl.errors import BadDataError, BadSceneError
from reconx_pl.files.atomic import atomic_write
from reconx_pl.splatting.initialise import SH_DC
from reconx_pl.types import Gaussians

logger = logging.getLogger(__name__)

_ROW = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("color", "u1", 4), ("rotation", "u1", 4)])


def base_colors(gaussians: Gaussians) -> Tensor:
    """Colours of spherical harmonics of degree 0, [N, 3] in [0, 1]: what is left without view dependence."""
    return (SH_DC * gaussians.sh[:, 0] + 0.5).clamp(0, 1)


def by_importance(gaussians: Gaussians) -> Tensor:
    """Indices [N] of the Gaussians by opacity times volume, the largest first; ties in their order."""
    opacity = torch.nn.functional.logsigmoid(gaussians.opacity_logits.detach().double())
    return torch.argsort(opacity + gaussians.log_scales.detach().double().sum(dim=1), descending=True, stable=True)


def save_splat(gaussians: Gaussians, path: str | Path) -> Path:
    """Write the scene, replacing a file of that name; see the module for what is lost.

    Raises:
        BadSceneError: a value is NaN or infinite, a rotation is zero, or a standard deviation is beyond float32.
    """
    path = Path(path)
    if gaussians.sh_degree > 0:
        logger.warning(
            "%s: .splat holds base colours only, the view dependence of degree %d is left out (.ply keeps it)",
            path, gaussians.sh_degree,
        )  # fmt: skip
    order = by_importance(gaussians)
    means = gaussians.means.detach()[order].float()
    scales = gaussians.log_scales.detach()[order].float().exp()
    colors = torch.cat([base_colors(gaussians), gaussians.opacity_logits.sigmoid()[:, None]], dim=1).detach()[order]
    quaternions = torch.nn.functional.normalize(gaussians.quaternions.detach()[order].double(), dim=1, eps=1e-30)
    usable = all(bool(torch.isfinite(part).all()) for part in (means, scales, colors, quaternions))
    if not usable or not bool((quaternions.norm(dim=1) > 0.5).all()):
        raise BadSceneError(f"{path} not written: the scene has NaN or infinite values, or a rotation of length zero")
    rows = np.empty(len(order), _ROW)
    rows["mean"], rows["scale"] = means.cpu().numpy(), scales.cpu().numpy()
    rows["color"] = (colors.double() * 255).round().to(torch.uint8).cpu().numpy()
    rows["rotation"] = (quaternions * 128 + 128).round().clamp(max=255).to(torch.uint8).cpu().numpy()
    with atomic_write(path) as partial:
        partial.write_bytes(rows.tobytes())
    return path


def load_splat(path: str | Path) -> Gaussians:
    """Read a scene of degree 0; opacities of 0 and 255 become 0.5 and 254.5 of 255, whose logits are finite.

    Raises:
        BadDataError: no such file, a size that is no multiple of 32 bytes, values that no writer of this format gives;
            the message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise BadDataError(f"{path}: no such file")
    data = path.read_bytes()
    if not data or len(data) % _ROW.itemsize:
        raise BadDataError(
            f"{path} has {len(data)} bytes, not a multiple of {_ROW.itemsize}: truncated, or no .splat file"
        )
    rows = np.frombuffer(data, _ROW)
    means, scales = rows["mean"].copy(), rows["scale"].copy()
    quaternions = rows["rotation"].astype(np.float32) / 128 - 1
    bad = ~(np.isfinite(means).all(axis=1) & np.isfinite(scales).all(axis=1))
    bad |= (scales < 0).any(axis=1) | ~quaternions.any(axis=1)
    if bad.any():
        raise BadDataError(
            f"{path}: {bad.sum()} of {len(rows)} rows have NaN, negative sizes or no rotation, the first is number "
            f"{int(bad.argmax())}; the file is damaged, or no .splat file"
        )
    colors = rows["color"].astype(np.float32) / 255
    opacity = np.clip(rows["color"][:, 3].astype(np.float64), 0.5, 254.5) / 255
    return Gaussians(
        means=torch.from_numpy(means),
        quaternions=torch.from_numpy(quaternions),
        log_scales=torch.from_numpy(np.log(np.maximum(scales, np.finfo(np.float32).tiny))),  # flat ones have a zero
        opacity_logits=torch.from_numpy(np.log(opacity / (1 - opacity)).astype(np.float32)),
        sh=torch.from_numpy((colors[:, None, :3] - 0.5) / np.float32(SH_DC)),
    )
