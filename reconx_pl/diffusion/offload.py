"""Parts of a network that are on the device only while they work, for GPUs that cannot hold all of them at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def resident(device: torch.device | str, home: torch.device | str | None, *parts: nn.Module | None) -> Iterator[None]:
    """Bring ``parts`` to ``device`` for the block, and back to ``home`` after it, also when the block fails.

    Args:
        device: where they work.
        home: where they stay otherwise, usually "cpu"; None leaves them on ``device``.
        parts: modules; None stands for a part that the network does not have.
    """
    present = [part for part in parts if part is not None]
    for part in present:
        part.to(device)
    try:
        yield
    finally:
        if home is not None:
            for part in present:
                part.to(home)
            if torch.device(device).type == "cuda":
                torch.cuda.empty_cache()  # the next part may need the room in other block sizes
