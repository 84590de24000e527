"""Training with the second condition before the last frame: which draws it adds, and a run of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from rank_program import FRAMES, NumberedBatches, tiny_network
from safetensors.torch import load_file
from tiny_run import logged, tiny_config

from reconx_pl.cli.train import main
from reconx_pl.data.procedural import write_procedural
from reconx_pl.diffusion.sampling.extrapolation import ExtrapolationConfig
from reconx_pl.diffusion.sampling.objective import DiffusionLoss
from reconx_pl.training.module import ReconXModule
from reconx_pl.training.stages import Stage

# what `network.loss` was given: whether in training, the second frames, where its generator stood
Call = tuple[bool, list[int] | None, torch.Tensor]


def calls_of(extrapolation: ExtrapolationConfig | None, steps: int = 6) -> list[Call]:
    """Train a network whose loss costs nothing with two batches of two clips a step."""
    module, calls = ReconXModule(tiny_network(), Stage.base, extrapolation=extrapolation), []
    weight = next(p for p in module.network.parameters() if p.requires_grad)

    def record(batch: Any, generator: torch.Generator, **options: Any) -> DiffusionLoss:
        end_condition_frame = options["end_condition_frame"]
        calls.append(
            (
                options.get("drop", True),
                end_condition_frame if end_condition_frame is None else end_condition_frame.tolist(),
                generator.get_state(),
            )
        )
        return DiffusionLoss(weight.sum(), weight.detach().flatten()[:2], torch.zeros(2, dtype=torch.int64))

    module.network.loss = record  # type: ignore[method-assign]
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, accumulate_grad_batches=2, val_check_interval=4,
        check_val_every_n_epoch=None, num_sanity_val_steps=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, NumberedBatches())
    return calls


def test_without_the_option_nothing_is_drawn_and_with_it_nothing_else_changes() -> None:
    off, on = calls_of(None), calls_of(ExtrapolationConfig(share=0.5, earliest=0.1, latest=0.9))
    assert [end_condition_frame for _, end_condition_frame, _ in off] == [None] * len(off)
    trained = [end_condition_frame for training, end_condition_frame, _ in on if training]
    assert len(trained) == 12
    drawn = {frame for end_condition_frame in trained for frame in end_condition_frame}
    assert drawn == set(range(1, FRAMES))  # the last frame for half of the samples
    assert len(set(map(tuple, trained))) > 1  # every batch draws its own
    assert all(torch.equal(a[2], b[2]) for a, b in zip(off, on, strict=True))


def test_draws_follow_from_the_step_alone() -> None:
    config = ExtrapolationConfig(share=0.5, earliest=0.1, latest=0.9)
    longer, shorter = calls_of(config), calls_of(config, steps=3)
    assert [c[1] for c in shorter if c[0]] == [c[1] for c in longer if c[0]][:6]


@pytest.mark.parametrize("asked", [False, True])
def test_validation_keeps_the_last_frame_unless_asked(asked: bool) -> None:
    calls = calls_of(ExtrapolationConfig(share=1.0, earliest=0.1, latest=0.9, validation=asked))
    held_out = [end_condition_frame for training, end_condition_frame, _ in calls if not training]
    assert len(held_out) == 3
    if asked:
        assert held_out[0] is not None and held_out == [held_out[0]] * 3  # one fixed draw: losses compare
        assert max(held_out[0]) < FRAMES - 1
    else:
        assert held_out == [None] * 3


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_procedural(folder, count=6, first_seed=0, frames=4, size=(32, 32), points=64, clips_per_shard=2)
    return folder


def run(folder: Path, shards: Path, steps: int, *arguments: str) -> tuple[dict[int, float], dict[str, torch.Tensor]]:
    folder.mkdir(exist_ok=True)
    path = tiny_config(folder, shards, "stage2", steps=steps, checkpoint_every=2)
    config = yaml.safe_load(path.read_text())
    config["model"]["optimizer"] |= {"decay": "none"}
    network = config["model"]["network"]["init_args"]  # the paper's: renders know no second condition on the way
    network |= {"guidance": "structure", "render": None}
    network["unet"]["in_channels"] = 2 * network["unet"]["out_channels"]
    path.write_text(yaml.safe_dump(config))
    main(["fit", "-c", str(path), *arguments])
    return logged(folder / "stage2", "train/loss"), load_file(folder / "stage2" / "weights.safetensors")


def test_a_run_extrapolates_with_structure_and_resumes_exactly(shards: Path, tmp_path: Path) -> None:
    option = ("--model.extrapolation", "{share: 1.0, earliest: 0.3, latest: 0.7}")
    whole = run(tmp_path / "whole", shards, 3, *option)
    assert sorted(whole[0]) == [0, 1, 2]
    run(tmp_path / "parts", shards, 2, *option)
    parts = run(tmp_path / "parts", shards, 3, *option)
    assert parts[0][2] == whole[0][2]
    assert all(torch.equal(parts[1][name], whole[1][name]) for name in whole[1])
    born = [name for name in whole[1] if name.endswith("structure_gate")]
    assert born and all(whole[1][name].abs() > 0 for name in born)
