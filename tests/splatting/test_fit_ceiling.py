"""The ceiling of the splatting: true frames, confidence 1, the cloud of two views; scored on views it never saw."""

from __future__ import annotations

import pytest
import torch

from reconx_pl.data.procedural import procedural_clip, procedural_views
from reconx_pl.metrics.image import psnr
from reconx_pl.splatting.fit import FitConfig, fit
from reconx_pl.splatting.losses import LossWeights
from reconx_pl.splatting.renderers.cpu import CpuRenderer

SIZE = (128, 128)


@pytest.mark.parametrize(("seed", "kind"), [(2_000_002, "room"), (2_000_000, "landscape")])
def test_true_frames_reach_28_db_on_held_out_views(seed: int, kind: str) -> None:
    clip = procedural_clip(seed, frames=8, size=SIZE, kind=kind, points=16384)
    between = [(index + 0.5) / 7 for index in range(7)]  # half-way between the frames of the clip
    truth, _, cameras = procedural_views(seed, between, SIZE, kind)
    config = FitConfig(steps=250, loss=LossWeights(lpips=0.0))  # 1,000 steps in the demo; 250 are enough to tell
    assert clip.cloud is not None
    result = fit(clip.images, clip.cameras, torch.ones(8, *SIZE), clip.cloud, config)
    rendered = CpuRenderer().render(result.gaussians, cameras).color.detach()
    scores = psnr(rendered, truth.float() / 255)
    assert scores.mean() >= 28.0, scores
    assert result.final_loss < 0.3 * result.history[0]
