"""One door to the files of Gaussian scenes: the ending of the name decides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from reconx_pl.errors import ConfigurationError
from reconx_pl.files.atomic import refuse_existing
from reconx_pl.splatting.io.ply import load_ply, save_ply
from reconx_pl.splatting.io.splat import load_splat, save_splat
from reconx_pl.types import Gaussians

LOADERS: dict[str, Callable[[Path], Gaussians]] = {".ply": load_ply, ".splat": load_splat}
SAVERS: dict[str, Callable[[Gaussians, Path], Path]] = {".ply": save_ply, ".splat": save_splat}


def load_scene(path: Path) -> Gaussians:
    """Read a scene.

    Raises:
        ConfigurationError: an ending that is neither .ply nor .splat.
        BadDataError: the file is missing or damaged.
    """
    return LOADERS[_ending(path)](path)


def save_scene(gaussians: Gaussians, path: Path, overwrite: bool = False) -> Path:
    """Write a scene: .ply keeps everything but the background, .splat is lossy (see ``splatting.splat``).

    Raises:
        ConfigurationError: an ending that is neither .ply nor .splat, or a file that is there and may not be replaced.
        BadSceneError: NaN or infinite values.
    """
    save = SAVERS[_ending(path)]
    refuse_existing(path, overwrite)
    return save(gaussians, path)


def _ending(path: Path) -> str:
    ending = path.suffix.lower()
    if ending not in LOADERS:
        raise ConfigurationError(f"{path}: a Gaussian scene is a file that ends in {' or '.join(LOADERS)}")
    return ending
