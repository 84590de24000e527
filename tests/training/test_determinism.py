"""``--trainer.deterministic true`` and a seed give the same run again, to the last bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import logged, tiny_config

from reconx_pl.cli.train import main
from reconx_pl.data.procedural import write_procedural


@pytest.fixture
def restored() -> Iterator[None]:
    """Lightning's flag is torch's, and of the whole process."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


def run(folder: Path, shards: Path, seed: int) -> tuple[dict[str, torch.Tensor], dict[int, float]]:
    folder.mkdir()
    config = tiny_config(folder, shards, "base", steps=3, checkpoint_every=3)
    torch.rand(seed + len(folder.name))  # whatever the process drew before
    main(["fit", "-c", str(config), "--trainer.deterministic", "true", "--seed_everything", str(seed)])
    assert torch.are_deterministic_algorithms_enabled()
    return load_file(folder / "base" / "weights.safetensors"), logged(folder / "base", "train/loss")


def test_two_runs_of_a_seed_are_one(tmp_path: Path, restored: None) -> None:
    write_procedural(tmp_path / "s", count=6, first_seed=0, frames=4, size=(32, 32), points=64, clips_per_shard=2)
    first, second = (run(tmp_path / name, tmp_path / "s", seed=3) for name in ("a", "second"))
    assert first[1] == second[1] and len(first[1]) == 3
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])
    other = run(tmp_path / "other", tmp_path / "s", seed=4)
    assert other[1] != first[1] and not all(torch.equal(first[0][name], other[0][name]) for name in first[0])
