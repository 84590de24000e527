"""Gaussian scenes as PLY files in the layout of the 3DGS authors, which every viewer reads.

Binary little endian, one vertex a Gaussian, all float32: x y z nx ny nz f_dc_0..2 f_rest_* opacity scale_0..2
rot_0..3. ``f_rest`` is channel-major (all red coefficients, then green, then blue); opacity before the sigmoid, scales
as logarithms, quaternion wxyz.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from reconx_pl.errors import BadDataError, BadSceneError
from reconx_pl.types import Gaussians

_MAX_HEADER = 64 * 1024  # bytes


def _columns(rest: int) -> list[str]:
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    names += [f"f_rest_{i}" for i in range(rest)]
    return [*names, "opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]


def save_ply(gaussians: Gaussians, path: str | Path) -> Path:
    """Write the scene; the background is not part of the format.

    Raises:
        BadSceneError: a value is NaN or infinite.
    """
    path = Path(path)
    count, coefficients = gaussians.sh.shape[0], gaussians.sh.shape[1]
    sh = gaussians.sh.detach().float().cpu()
    table = torch.cat(
        [
            gaussians.means.detach().float().cpu(),
            torch.zeros(count, 3),  # normals, which the format demands and nobody uses
            sh[:, 0],
            sh[:, 1:].transpose(1, 2).reshape(count, 3 * (coefficients - 1)),
            gaussians.opacity_logits.detach().float().cpu()[:, None],
            gaussians.log_scales.detach().float().cpu(),
            gaussians.quaternions.detach().float().cpu(),
        ],
        dim=1,
    )
    if not bool(torch.isfinite(table).all()):
        raise BadSceneError(f"{path} not written: the scene has NaN or infinite values")
    columns = _columns(3 * (coefficients - 1))
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {count}"]
    header += [f"property float {name}" for name in columns] + ["end_header", ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes("\n".join(header).encode("ascii") + table.numpy().astype("<f4").tobytes())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def load_ply(path: str | Path) -> Gaussians:
    """Read a scene that ``save_ply``, 3DGS or gsplat wrote (columns in any order, normals may be missing).

    Raises:
        BadDataError: not a PLY of Gaussians, another encoding, or a truncated file; the message names it.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(_MAX_HEADER)
        end = start.find(b"end_header\n")
        if not start.startswith(b"ply\n") or end < 0:
            raise BadDataError(f"{path} is not a PLY file")
        count, names = _parse_header(start[:end].decode("ascii", errors="replace").splitlines(), path)
        file.seek(end + len(b"end_header\n"))
        data = file.read(count * len(names) * 4)
    if len(data) < count * len(names) * 4:
        raise BadDataError(f"{path} is truncated: the header promises {count} Gaussians of {len(names)} numbers")
    table = np.frombuffer(data, "<f4").reshape(count, len(names))
    place = {name: i for i, name in enumerate(names)}
    rest = sum(name.startswith("f_rest_") for name in names)
    missing = [name for name in _columns(rest) if name not in place and name not in ("nx", "ny", "nz")]
    if missing or rest not in (0, 9, 24, 45):
        raise BadDataError(
            f"{path} is not a PLY of Gaussians: missing {missing}, {rest} f_rest columns (0, 9, 24 or 45)"
        )

    def take(*wanted: str) -> torch.Tensor:
        return torch.from_numpy(table[:, [place[name] for name in wanted]].astype(np.float32))

    base = take("f_dc_0", "f_dc_1", "f_dc_2")[:, None]  # [N, 1, 3]
    higher = take(*(f"f_rest_{i}" for i in range(rest))).reshape(count, 3, rest // 3).transpose(1, 2)
    return Gaussians(
        means=take("x", "y", "z"),
        quaternions=take("rot_0", "rot_1", "rot_2", "rot_3"),
        log_scales=take("scale_0", "scale_1", "scale_2"),
        opacity_logits=take("opacity")[:, 0],
        sh=torch.cat([base, higher], dim=1),
    )


def _parse_header(lines: list[str], path: Path) -> tuple[int, list[str]]:
    """Number of vertices and names of their columns."""
    if "format binary_little_endian 1.0" not in lines:
        raise BadDataError(f"{path}: only binary little-endian PLY is read; convert it")
    count, names, element = -1, [], ""
    for line in lines:
        words = line.split()
        if words[:1] == ["element"] and len(words) == 3:
            element = words[1]
            if element == "vertex" and words[2].isdigit():
                count = int(words[2])
            elif count < 0:
                raise BadDataError(f"{path}: element {element} before the vertices is not read")
        elif words[:1] == ["property"] and element == "vertex":
            if len(words) != 3 or words[1] not in ("float", "float32"):
                raise BadDataError(f"{path}: property '{line}' of a Gaussian is not a float")
            names.append(words[2])
    if count < 0:
        raise BadDataError(f"{path}: no element vertex in the header")
    return count, names
