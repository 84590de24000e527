"""``benchmarks.refine``: what it does to cameras and depth, what it calls better and worse, and one row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.reconstruct import write_room
from benchmarks.refine import Errors, Photographs, errors, main, roughened, verdict
from reconx_pl.data.procedural import procedural_views


@pytest.fixture(scope="module")
def true() -> Photographs:
    frames, depth, cameras = procedural_views(5, [0, 0.5, 1], (24, 32), kind="landscape")
    return Photographs(frames.float() / 255, cameras.to(dtype=torch.float32), depth.float())


def test_every_view_is_off_by_what_was_asked(true: Photographs) -> None:
    rough = roughened(true, degrees=3, percent=4, focal=1.05, seed=1)
    turn = rough.cameras.world_to_camera[:, :3, :3] @ true.cameras.world_to_camera[:, :3, :3].transpose(1, 2)
    cosine = (turn.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
    torch.testing.assert_close(torch.rad2deg(torch.acos(cosine)), torch.full((3,), 3.0), atol=0.02, rtol=0)
    centers = true.cameras.centers
    way = (rough.cameras.centers - centers).norm(dim=1) / torch.cdist(centers, centers).max()
    torch.testing.assert_close(way, torch.full((3,), 0.04), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        rough.cameras.intrinsics[:, [0, 1], [0, 1]], 1.05 * true.cameras.intrinsics[:, [0, 1], [0, 1]]
    )
    assert (rough.cameras.intrinsics[:, :2, 2] == true.cameras.intrinsics[:, :2, 2]).all()
    other = roughened(true, degrees=3, percent=4, focal=1, seed=2)
    assert not torch.equal(other.cameras.world_to_camera, rough.cameras.world_to_camera)


def test_errors_are_the_largest_of_a_view_and_know_no_scale(true: Photographs) -> None:
    exact = roughened(true, degrees=0, percent=0, focal=1, seed=0)
    assert errors(exact.cameras, true.depth, true).rotation < 0.05
    poses = true.cameras.world_to_camera.clone()
    poses[:, :3, 3] *= 7
    scaled = type(true.cameras)(poses, true.cameras.intrinsics, 24, 32)
    depth = 7 * true.depth
    depth[1] *= 1.1
    found = errors(scaled, depth, true)
    assert found.rotation < 0.05 and found.translation < 0.05 and abs(found.depth - 9.53) < 0.1


@pytest.mark.parametrize(
    ("rotation", "translation", "word"),
    [(0.5, 1.0, "better"), (1.0, 0.5, "better"), (1.05, 1.2, "same"), (1.2, 0.1, "worse"), (0.1, 1.4, "worse")],
)
def test_verdicts(rotation: float, translation: float, word: str) -> None:
    assert verdict(Errors(1, 1, 1), Errors(rotation, translation, 9)) == word


def test_a_row_of_a_room(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_room(tmp_path / "room", 3000001)
    main(["room=2,2,3", "--root", str(tmp_path), "--levels", "2,3", "--seeds", "1"])
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith("| 3 of room | 2°, 3 % |") and row.endswith("| 1 / 0 / 0 |")
