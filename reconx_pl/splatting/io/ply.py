"""Gaussian scenes as PLY files in the layout of the 3DGS authors, which every viewer reads.

Binary little endian, one vertex a Gaussian, all float32: x y z nx ny nz f_dc_0..2 f_rest_* opacity scale_0..2
rot_0..3. ``f_rest`` is channel-major (all red coefficients, then green, then blue); opacity before the sigmoid, scales
as logarithms, quaternion wxyz.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from reconx_pl.errors import BadDataError, BadSceneError
from reconx_pl.files.atomic import atomic_write
from reconx_pl.types import Gaussians

_MAX_HEADER = 64 * 1024  # bytes
_ROWS = 1 << 16  # Gaussians in memory beside the scene


def _columns(rest: int) -> list[str]:
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    names += [f"f_rest_{i}" for i in range(rest)]
    return [*names, "opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]


def save_ply(gaussians: Gaussians, path: str | Path) -> Path:
    """Write the scene, replacing a file of that name; the background is not part of the format.

    Raises:
        BadSceneError: a value is NaN or infinite.
    """
    path = Path(path)
    means, log_scales, quaternions, logits, sh = (
        part.detach().float()
        for part in (
            gaussians.means,
            gaussians.log_scales,
            gaussians.quaternions,
            gaussians.opacity_logits,
            gaussians.sh,
        )
    )
    if not all(bool(torch.isfinite(part).all()) for part in (means, log_scales, quaternions, logits, sh)):
        raise BadSceneError(f"{path} not written: the scene has NaN or infinite values")
    count, rest = len(gaussians), 3 * (sh.shape[1] - 1)
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {count}"]
    header += [f"property float {name}" for name in _columns(rest)] + ["end_header", ""]
    with atomic_write(path) as partial, partial.open("wb") as file:
        file.write("\n".join(header).encode("ascii"))
        for start in range(0, count, _ROWS):
            rows = slice(start, start + _ROWS)
            higher = sh[rows, 1:].transpose(1, 2).flatten(1)
            normals = torch.zeros_like(means[rows])  # which the format demands and nobody uses
            columns = [means[rows], normals, sh[rows, 0], higher, logits[rows, None], log_scales[rows]]
            file.write(torch.cat([*columns, quaternions[rows]], dim=1).cpu().numpy().astype("<f4").tobytes())
    return path


def load_ply(path: str | Path) -> Gaussians:
    """Read a scene that ``save_ply``, 3DGS or gsplat wrote (columns in any order, normals may be missing).

    Raises:
        BadDataError: no such file, not a PLY of Gaussians, another encoding, a truncated file, NaN or infinite values;
            the message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise BadDataError(f"{path}: no such file")
    with path.open("rb") as file:
        start = file.read(_MAX_HEADER)
        end = start.find(b"end_header\n")
        if not start.startswith(b"ply\n") or end < 0:
            raise BadDataError(f"{path} is not a PLY file")
        count, names = _parse_header(start[:end].decode("ascii", errors="replace").splitlines(), path)
        rest = sum(name.startswith("f_rest_") for name in names)
        missing = sorted(set(_columns(rest)) - {"nx", "ny", "nz"} - set(names))
        if missing or rest not in (0, 9, 24, 45):
            raise BadDataError(
                f"{path} is not a PLY of Gaussians: missing {missing}, {rest} f_rest columns (0, 9, 24 or 45)"
            )
        first, row = end + len(b"end_header\n"), 4 * len(names)
        if path.stat().st_size - first < count * row:
            raise BadDataError(f"{path} is truncated: the header promises {count} Gaussians of {len(names)} numbers")
        file.seek(first)
        place = {name: i for i, name in enumerate(names)}

        def places(*wanted: str) -> list[int]:
            return [place[name] for name in wanted]

        means, quaternions, log_scales, logits = (np.empty((count, n), np.float32) for n in (3, 4, 3, 1))
        sh = np.empty((count, rest // 3 + 1, 3), np.float32)
        higher = places(*(f"f_rest_{i}" for i in range(rest)))
        for begin in range(0, count, _ROWS):  # the table as a whole would take the memory of the scene again
            rows = slice(begin, min(begin + _ROWS, count))
            table = np.frombuffer(file.read((rows.stop - begin) * row), "<f4").reshape(-1, len(names))
            means[rows] = table[:, places("x", "y", "z")]
            quaternions[rows] = table[:, places("rot_0", "rot_1", "rot_2", "rot_3")]
            log_scales[rows] = table[:, places("scale_0", "scale_1", "scale_2")]
            logits[rows] = table[:, places("opacity")]
            sh[rows, 0] = table[:, places("f_dc_0", "f_dc_1", "f_dc_2")]
            sh[rows, 1:] = table[:, higher].reshape(len(table), 3, rest // 3).transpose(0, 2, 1)
    bad = ~np.logical_and.reduce(
        [np.isfinite(part).reshape(count, -1).all(axis=1) for part in (means, quaternions, log_scales, logits, sh)]
    )
    if bad.any():
        raise BadDataError(
            f"{path}: {bad.sum()} of {count} Gaussians have NaN or infinite values, the first is number "
            f"{int(bad.argmax())}; remove them, or fit the scene again"
        )
    return Gaussians(
        means=torch.from_numpy(means),
        quaternions=torch.from_numpy(quaternions),
        log_scales=torch.from_numpy(log_scales),
        opacity_logits=torch.from_numpy(logits[:, 0]),
        sh=torch.from_numpy(sh),
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
