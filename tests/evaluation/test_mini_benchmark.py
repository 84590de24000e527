"""What benchmarks.mini makes of real scenes: windows that overlap, and views that score them."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import mini
from reconx_pl.data.photos.posed_clip import SceneWindow
from reconx_pl.data.procedural import procedural_clip
from reconx_pl.errors import BadSceneError

CHOSEN = Namespace(frames=8, stride=2, size=64, poses="dataset")


def test_a_window_is_narrowed_until_its_photographs_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[SceneWindow] = []

    def found(scene: Path, window: SceneWindow, *rest: Any) -> str:
        asked.append(window)
        if window.frames > 3:
            raise BadSceneError("too far apart")
        return "clip"

    monkeypatch.setattr(mini, "posed_clip", found)
    assert mini.widest_window(CHOSEN, Path("scene")) == "clip"  # type: ignore[comparison-overlap]
    assert [(window.frames, window.stride, window.height) for window in asked] == [(8, 2, 64), (5, 2, 64), (3, 2, 64)]


def test_photographs_that_never_overlap_are_named_by_the_narrowest_window(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(scene: Path, window: SceneWindow, *rest: Any) -> str:
        raise BadSceneError(f"{window.frames} frames")

    monkeypatch.setattr(mini, "posed_clip", found)
    with pytest.raises(BadSceneError, match="3 frames"):
        mini.widest_window(CHOSEN, Path("scene"))


def test_the_ends_of_a_window_are_given_and_the_views_between_score_it() -> None:
    clip = procedural_clip(3, 5, (32, 32), points=512)
    views = mini.views_of(clip)
    assert torch.equal(views.context_images, clip.images[[0, 4]])
    assert torch.equal(views.target_images, clip.images[1:4])
    assert torch.equal(views.target_cameras.world_to_camera, clip.cameras.world_to_camera[1:4])
    assert views.context_indices == (0, 4) and views.target_indices == (1, 2, 3)
    assert views.context_depth is clip.depth


def test_the_scene_of_the_input_views_has_one_name() -> None:
    record = {"scores": {"reconx": {"mean": {"psnr": 21.0}}, "contexts": {"mean": {"psnr": 20.0}}}}
    scores = mini.scores_of(record)
    assert mini.difference(scores, "reconx", "two_views") == {"psnr": 1.0}
