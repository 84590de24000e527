"""``benchmarks.exposures``, and photographs of other exposures in ``benchmarks.views``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import exposures
from benchmarks.reconstruct import one_gain, withheld, write_room
from reconx_pl.data.formats.readers import only_scene


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "room"
    write_room(folder, 3000001)
    return folder


def test_given_photographs_are_brighter_and_darker_in_turn(room: Path, tmp_path: Path) -> None:
    raw, means = only_scene(room), {}
    for exposure in (0.0, 0.2):
        names = withheld(raw, [1, 4, 6], tmp_path / str(exposure), exposure)
        means[exposure] = {
            view: np.asarray(Image.open(tmp_path / str(exposure) / name)).mean() for name, view in names.items()
        }
    assert [round(means[0.2][view] / means[0.0][view], 1) for view in (1, 4, 6)] == [1.2, 0.8, 1.0]


def test_the_one_gain_is_that_of_all_pictures() -> None:
    pictures = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert float(one_gain(0.5 * pictures, pictures)) == pytest.approx(2.0)
    assert float(one_gain(pictures, pictures * torch.tensor([0.8, 1.2])[:, None, None, None])) != pytest.approx(1.0)


def test_gains_of_a_room(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exposures.main(["room=3", "room=30", "--root", str(room.parent)])
    *_, cells, refused = capsys.readouterr().out.splitlines()
    span, _, as_taken, evened, off = (cell.strip() for cell in cells.split("|")[2:7])
    assert (as_taken, evened) == ("no", "yes") and float(span.split()[0]) < 5 and float(off.split()[0]) < 3
    assert "fewer than 30" in refused
