"""A checkpoint knows the order of its clips: resumed in the same order, refused in another, or at the next epoch."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from shard_clips import POINTS, pack_numbers
from test_datamodule import Recorder, fit

from reconx_pl.data.datamodule import ShardDataModule
from reconx_pl.data.shards.position import Origin, StreamOrder, position_state, resume_origin
from reconx_pl.data.shards.stream import ClipStream
from reconx_pl.errors import ConfigurationError

ORDER = {
    "shards": "abc", "clips": 10, "batch_size": 2, "ranks": 2, "readers": 1, "accumulate": 3, "seed": 0,
    "shuffle": True, "shuffle_buffer": 64,
}  # fmt: skip
QUIET = {"num_sanity_val_steps": 0, "limit_val_batches": 0}


def order(**changes: Any) -> StreamOrder:
    return StreamOrder(**{**ORDER, **changes})


def test_the_same_order_keeps_its_origin() -> None:
    state = position_state(order(), Origin(step=4, epoch=3), step=9)
    assert resume_origin(order(), state, "refuse") == resume_origin(order(), state, "next_epoch") == Origin(4, 3)
    assert Origin(step=4, epoch=3).consumed(9, accumulate=3) == 15


def test_every_change_of_the_order_is_named() -> None:
    state = position_state(order(), Origin(), step=9)
    for name, value in ORDER.items():
        other = not value if isinstance(value, bool) else value * 2 if value else 5
        with pytest.raises(ConfigurationError, match=rf"has changed: {name} (.* -> {other}|is another)\. .*next_epoch"):
            resume_origin(order(**{name: other}), state, "refuse")


def test_the_next_epoch_is_the_one_after_the_clips_seen() -> None:
    for step, epoch in ((0, 1), (1, 2), (5, 7)):  # 12 clips a step of 10 in an epoch
        state = position_state(order(), Origin(), step)
        assert resume_origin(order(ranks=4), state, "next_epoch") == Origin(step, epoch)


def checkpoint(data: ShardDataModule, steps: int, path: Path, start: Path | None = None, **arguments: Any) -> Recorder:
    module, trainer = fit(data, start, max_steps=steps, **QUIET, **arguments)
    trainer.save_checkpoint(path)
    return module


def test_a_run_of_another_batch_size(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = str(tmp_path / "shards")
    pack_numbers(Path(folder), 14)

    def data(batch_size: int, **arguments: Any) -> ShardDataModule:
        return ShardDataModule(folder, points=POINTS, batch_size=batch_size, seed=3, **arguments)

    checkpoint(data(2), 3, tmp_path / "a.ckpt")
    with pytest.raises(ConfigurationError, match="batch_size 2 -> 1"):
        fit(data(1), tmp_path / "a.ckpt", max_steps=9, **QUIET)
    with caplog.at_level(logging.WARNING):
        first = checkpoint(data(1, on_change="next_epoch"), 8, tmp_path / "b.ckpt", tmp_path / "a.ckpt")
    assert "goes on with epoch 1" in caplog.text
    rest, _ = fit(data(1), tmp_path / "b.ckpt", max_steps=13, **QUIET)  # the changed order, resumed, is exact again
    stream = ClipStream(folder, points=POINTS, seed=3, first_epoch=1)
    expected = [batch["key"] for batch in islice(stream, 10)]
    assert first.trained + rest.trained == expected
    assert expected != [batch["key"] for batch in islice(ClipStream(folder, points=POINTS, seed=3), 10)]


def test_other_shards_are_refused_in_training_alone(tmp_path: Path) -> None:
    pack_numbers(tmp_path / "some", 6)
    pack_numbers(tmp_path / "more", 8)
    _, trainer = fit(ShardDataModule(str(tmp_path / "some"), points=POINTS), max_steps=2, **QUIET)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    other = ShardDataModule(str(tmp_path / "more"), val=str(tmp_path / "more"), points=POINTS)
    with pytest.raises(ConfigurationError, match="shards is another, clips 6 -> 8"):
        fit(other, tmp_path / "a.ckpt", max_steps=9, **QUIET)
    module = Recorder()
    trainer.limit_val_batches = 2
    trainer.validate(module, other, ckpt_path=tmp_path / "a.ckpt", verbose=False, weights_only=True)
    assert module.validated == [["clip-000"], ["clip-001"]]


def test_another_accumulation_is_refused(tmp_path: Path) -> None:
    pack_numbers(tmp_path / "shards", 6)
    data = ShardDataModule(str(tmp_path / "shards"), points=POINTS)
    _, trainer = fit(data, max_steps=2, accumulate_grad_batches=2, **QUIET)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ConfigurationError, match="accumulate 2 -> 1"):
        fit(ShardDataModule(str(tmp_path / "shards"), points=POINTS), tmp_path / "a.ckpt", max_steps=9, **QUIET)
