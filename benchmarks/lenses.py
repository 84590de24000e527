"""A focal length from EXIF that is a little off: is it better refined by structure from motion, or kept?

``python -m benchmarks.lenses [SCENE=FIRST,STEP,COUNT ...]``: neighbouring photographs of posed scenes, starting from a
focal length 5 % too short and 2 % too long. A row has the error of the focal length that was found, and the largest
rotation error of a camera after alignment with the poses of the scene: with nothing known, refined, and kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from reconx_pl.data.formats.readers import only_scene
from reconx_pl.errors import BadSceneError
from reconx_pl.geometry.estimators import colmap as colmap_estimator
from reconx_pl.geometry.estimators.colmap import ColmapEstimator
from reconx_pl.geometry.estimators.colmap_mapping import Mapper
from reconx_pl.geometry.estimators.lenses import Lenses
from reconx_pl.geometry.similarity import align

ROWS = (
    "mid_templeRing=0,1,2", "mid_templeRing=0,1,3", "llff_fern=0,1,2", "llff_fern=0,1,3", "llff_fern=0,1,4",
    "re10k_2c80f9eb0d3b2bb4=0,6,3", "re10k_2c80f9eb0d3b2bb4=0,4,4", "ingp_fox=10,2,2", "ingp_fox=10,2,3",
    "ingp_fox=10,2,4", "pi3_room=0,1,2", "pi3_room=0,1,3", "brighton_beach=0,1,2", "brighton_beach=0,1,3",
    "brighton_beach=0,1,4",
)  # fmt: skip
STARTS = (0.95, 1.02)


def refining(known: dict[int, float], mapper: Mapper, who: str) -> Any:
    """In the place of the rule that decides: always refined."""
    return mapper.model()


def cell(images: torch.Tensor, cameras: Any, estimate: Callable[[], Any]) -> str:
    """Error of the focal length and largest rotation error."""
    try:
        found = estimate()
        _, quality = align(found, cameras)
    except BadSceneError:
        return "fails"
    true = cameras.intrinsics[:, 0, 0]
    off = 100 * float((found.cameras.intrinsics[:, 0, 0] / true - 1).mean())
    return f"{off:+.0f} %, {max(quality.rotation_degrees):.2f}°"


def row(root: Path, text: str, features: int) -> str:
    name, _, numbers = text.partition("=")
    first, step, count = map(int, numbers.split(","))
    views = [first + step * at for at in range(count)]
    raw = only_scene(root / name)
    images = torch.stack([torch.from_numpy(raw.load_image(view).copy()) for view in views])
    images, cameras = images.permute(0, 3, 1, 2).float() / 255, raw.cameras[views]
    focal = float(cameras.intrinsics[0, 0, 0])
    free = ColmapEstimator(features=features)
    cells = [cell(images, cameras, partial(free.estimate, images))]
    for start in STARTS:
        lenses = Lenses((0,) * count, (focal * start,) * count)
        with patch.object(colmap_estimator, "model_from_known", refining):
            cells.append(cell(images, cameras, partial(free.estimate, images, lenses=lenses)))
        kept = ColmapEstimator(focal=focal * start, features=features)
        cells.append(cell(images, cameras, partial(kept.estimate, images)))
    return f"| {count} of {name}, {views[0]} to {views[-1]} | " + " | ".join(cells) + " |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lenses", description=__doc__)
    parser.add_argument("rows", nargs="*", default=ROWS, help="SCENE=FIRST,STEP,COUNT")
    parser.add_argument("--root", type=Path, default=Path("../shared/scenes"), help="folder of posed scenes")
    parser.add_argument("--features", type=int, default=4096, help="of an image, at most")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    heads = ["photographs", "nothing known"]
    heads += [f"{word} at {100 * (start - 1):+.0f} %" for start in STARTS for word in ("refined", "kept")]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for text in options.rows:
        print(row(options.root, text, options.features), flush=True)


if __name__ == "__main__":
    main()
