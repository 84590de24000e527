"""A run that is killed again and again goes on as if nothing had happened.

The default suite kills twice in 24 steps, sharded ranks once in 8; ``-m slow`` kills 5 times in 60.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from interrupted import complete, curves, final_state, keys, kill_at, prepared, start

from reconx_pl.data.procedural import write_procedural

FIVE_TIMES = pytest.param(60, 5, id="five_times", marks=pytest.mark.slow)
FSDP = ("-c", "configs/trainer/fsdp.yaml", "--trainer.devices", "2", "--trainer.accelerator", "cpu")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_procedural(folder, count=14, first_seed=0, frames=4, size=(32, 32), points=64, clips_per_shard=2)
    return folder


def killed_and_whole(
    tmp_path: Path, shards: Path, options: tuple[str, ...], ranks: int, steps: int, kills: int
) -> tuple[Path, Path]:
    whole, killed = (prepared(tmp_path / name, shards, steps, checkpoint_every=4) for name in ("whole", "killed"))
    complete(start(whole, *options))
    draw = random.Random(ranks)
    for step in sorted(draw.sample(range(5, steps - 1), kills)):  # of 14 clips: several epochs
        kill_at(killed, draw.randrange(ranks), step, *options)
    complete(start(killed, *options))
    return whole.parent, killed.parent


@pytest.mark.parametrize(("steps", "kills"), [pytest.param(24, 2, id="twice"), FIVE_TIMES])
def test_one_process_is_bit_for_bit_the_same(tmp_path: Path, shards: Path, steps: int, kills: int) -> None:
    whole, killed = killed_and_whole(tmp_path, shards, ("--data.num_workers", "2"), 1, steps, kills)
    assert len(keys(whole)) == steps and keys(killed) == keys(whole)
    assert len(curves(whole)) == steps and curves(killed) == curves(whole)
    expected, found = final_state(whole), final_state(killed)
    assert expected.keys() == found.keys() and any(name.startswith("ema.") for name in expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("steps", "kills"), [pytest.param(8, 1, id="once"), FIVE_TIMES])
def test_two_sharded_ranks_see_the_same_clips_and_end_the_same(
    tmp_path: Path, shards: Path, steps: int, kills: int
) -> None:
    whole, killed = killed_and_whole(tmp_path, shards, FSDP, 2, steps, kills)
    for rank in (0, 1):
        assert len(keys(whole, rank)) == steps and keys(killed, rank) == keys(whole, rank)
        assert len(curves(whole, rank)) == steps and curves(killed, rank).keys() == curves(whole, rank).keys()
        for step, expected in curves(whole, rank).items():
            assert curves(killed, rank)[step] == pytest.approx(expected, abs=1e-6)
    assert keys(whole, 0) != keys(whole, 1)
    expected_state, found_state = final_state(whole), final_state(killed)
    assert expected_state.keys() == found_state.keys() and any(name.startswith("ema.") for name in expected_state)
    for name, tensor in expected_state.items():
        torch.testing.assert_close(found_state[name], tensor, atol=1e-6, rtol=0, msg=name)
