"""Structure from motion on photographs whose poses are known: how far the poses it finds are from those.

``python -m benchmarks.geometry SCENE [SCENE ...] [--focal]``: folders of posed photographs in any format that
``reconx pack`` reads. The estimator sees the images alone (with ``--focal`` also their focal length, kept fixed), the
result is aligned by ``reconx_pl.geometry.similarity``. A wrong convention of axes shows as tens of degrees.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from reconx_pl.data.formats.readers import UnreadableScene, read_scenes
from reconx_pl.errors import BadSceneError
from reconx_pl.geometry.estimators.colmap import ColmapEstimator
from reconx_pl.geometry.similarity import align

HEAD = ("scene", "views", "points", "s", "rotation mean", "max", "translation mean", "max", "focal length")


def measured(folder: Path, with_focal: bool) -> tuple[str, ...]:
    """One row of the table."""
    raw = next(read_scenes(folder))
    if isinstance(raw, UnreadableScene):
        raise BadSceneError(f"{folder}: {raw.reason}")
    images = torch.stack([torch.from_numpy(raw.load_image(view).copy()) for view in range(len(raw))])
    images = images.permute(0, 3, 1, 2).float() / 255
    focal = float(raw.cameras.intrinsics[:, 0, 0].mean())
    estimator = ColmapEstimator(focal=focal if with_focal else None)
    start = time.perf_counter()
    try:
        found = estimator.estimate(images)
    except BadSceneError as error:
        return folder.name, str(len(raw)), f"none: {error}"
    seconds = time.perf_counter() - start
    _, quality = align(found, raw.cameras)
    turn, off = torch.tensor(quality.rotation_degrees), torch.tensor(quality.translation_percent)
    return (
        folder.name + (" (suspicious)" if quality.suspicious else ""),
        f"{len(found.cameras)} of {len(raw)}",
        f"{len(found.cloud):,}",
        f"{seconds:.0f}",
        f"{turn.mean():.2f}°",
        f"{turn.max():.2f}°",
        f"{off.mean():.2f} %",
        f"{off.max():.2f} %",
        f"{100 * (float(found.cameras.intrinsics[0, 0, 0]) / focal - 1):+.1f} %",
    )


def main() -> None:
    torch.set_num_threads(1)
    folders = [Path(name) for name in sys.argv[1:] if name != "--focal"]
    if not folders:
        sys.exit(__doc__)
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    for folder in folders:
        print("| " + " | ".join(measured(folder, "--focal" in sys.argv)) + " |", flush=True)


if __name__ == "__main__":
    main()
