"""What a reconstruction leaves in its folder, for every other program."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import mkdtemp

from reconx_pl.data.formats.exporting import transforms_content, write_colmap_model, write_images, write_points
from reconx_pl.data.formats.posed import posed_content, write_cloud
from reconx_pl.files.atomic import atomic_write
from reconx_pl.reconstruction.views import Views

SUMMARY, REPORT, STAGE_FOLDER = "reconstruction.json", "report.html", "stages"
GIVEN = "given"  # folder of photographs that were handed over in memory
CAMERAS, IMAGES, MODEL, CLOUD, ARCHIVE = "cameras.json", "images", "sparse", "points.ply", "points.npz"


def write_cameras(views: Views, out: Path) -> None:
    """Write the photographs as they were used, their cameras and the points, in three conventions at once.

    ``cameras.json`` has the keys of nerfstudio's ``transforms.json`` (OpenGL axes) and those of our own layout (``K``,
    ``c2w``, OpenCV axes; data/posed.md) side by side; each program reads its own. ``sparse/0`` is COLMAP's text model.
    All name the images in ``images``.
    """
    names = [f"{view:02d}_{Path(name).stem}.png" for view, name in enumerate(views.names)]
    scene = views.scene
    # a name of its own each time: one that a killed run left must not be in the way
    partial = Path(mkdtemp(prefix=".cameras-", dir=out))
    try:
        write_images(scene, partial, names)
        write_colmap_model(scene, partial, names)
        write_cloud(scene, partial)
        theirs, ours = transforms_content(scene, names) | write_points(scene, partial), posed_content(scene, names)
        frames = [one | other for one, other in zip(theirs.pop("frames"), ours.pop("frames"), strict=True)]
        content = json.dumps({**theirs, **ours, "frames": frames}, indent=1)
        (partial / CAMERAS).write_text(content + "\n", encoding="utf-8")
        for name in (IMAGES, MODEL, CLOUD, ARCHIVE, CAMERAS):
            put(partial / name, out / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def put(source: Path, target: Path) -> None:
    """Move a file or a folder to its place, over what is there."""
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    source.replace(target)


def copy(source: Path, target: Path) -> None:
    """Copy a file to its place, whole or not at all."""
    with atomic_write(target) as partial:
        shutil.copyfile(source, partial)
