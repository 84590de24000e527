"""Where a run stands in its training stream, and whether another run can go on from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from reconx_pl.errors import ConfigurationError

OnChange = Literal["refuse", "next_epoch"]


@dataclass(frozen=True)
class StreamOrder:
    """Everything that the order of the training clips follows from.

    Args:
        shards: digest of the shard list (``Manifest.order_digest``).
        clips: number of clips of an epoch.
        batch_size: clips of a batch on one rank.
        ranks: processes that share the clips.
        readers: processes that read, on each rank; reading in the training process counts as one.
        accumulate: batches of an optimizer step on each rank.
        seed, shuffle, shuffle_buffer: of the stream.
    """

    shards: str
    clips: int
    batch_size: int
    ranks: int
    readers: int
    accumulate: int
    seed: int
    shuffle: bool
    shuffle_buffer: int


@dataclass(frozen=True)
class Origin:
    """The optimizer step at which the present order began, and the epoch that it began with."""

    step: int = 0
    epoch: int = 0

    def consumed(self, step: int, accumulate: int) -> int:
        """Batches of the present order that each rank has trained on when optimizer step ``step`` begins."""
        return (step - self.step) * accumulate


def position_state(order: StreamOrder, origin: Origin, step: int) -> dict[str, Any]:
    """What a checkpoint keeps: plain values."""
    return {"order": asdict(order), "origin": asdict(origin), "step": step}


def resume_origin(order: StreamOrder, state: Mapping[str, Any], on_change: OnChange) -> Origin:
    """Where a run of ``order`` goes on from a checkpoint's ``position_state``.

    With the order of the checkpoint that is the very next batch. With another one there is no such place: under
    "next_epoch" the new order begins with the epoch after the one that the checkpoint stands in.

    Raises:
        ConfigurationError: another order under "refuse"; names what has changed.
    """
    saved, origin = dict(state["order"]), Origin(**state["origin"])
    own = asdict(order)
    changed = [
        f"{name} {'is another' if name == 'shards' else f'{saved.get(name)} -> {value}'}"
        for name, value in own.items()
        if saved.get(name) != value
    ]
    if not changed:
        return origin
    if on_change == "refuse":
        raise ConfigurationError(
            f"the checkpoint cannot be resumed at its place in the data, for the order of the clips has changed: "
            f"{', '.join(changed)}. Start with the settings and shards of the checkpoint, or set data.on_change to "
            "next_epoch to go on with the next epoch of the new order"
        )
    batches = origin.consumed(int(state["step"]), saved["accumulate"])
    passed = batches * saved["batch_size"] * saved["ranks"] // saved["clips"]
    return Origin(step=int(state["step"]), epoch=origin.epoch + passed + 1)
