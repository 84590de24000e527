"""Where a stage starts: a released checkpoint or a folder of ours, with queries adapted as asked."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import lightning as L
import pytest
import torch
from released_checkpoints import released, tiny

from reconx_pl.training.module import ReconXModule


@pytest.mark.parametrize("form", ["checkpoint", "folder"])
@pytest.mark.parametrize("queries", ["interpolate", "repeat"])
def test_a_stage_starts_from(form: str, queries: Literal["interpolate", "repeat"], tmp_path: Path) -> None:
    source, target = tiny(4, seed=1), tiny(8, seed=2)
    path = tmp_path / "start"
    if form == "folder":
        source.save_pretrained(path)
    else:
        torch.save({"state_dict": released(source)}, path)
    module = ReconXModule(target, init_from=path, queries=queries)
    module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    module.setup("fit")
    assert torch.equal(target.unet.out[0].weight, source.unet.out[0].weight)
    before = source.image_tokens.resampler.latents[0].unflatten(0, (4, 16))
    after = target.image_tokens.resampler.latents[0].unflatten(0, (8, 16))
    expected = before[0] if queries == "repeat" else torch.lerp(before[0], before[1], 3 / 7)
    torch.testing.assert_close(after[1], expected)
