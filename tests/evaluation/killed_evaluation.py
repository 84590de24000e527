"""A process that evaluates entries of a protocol and is killed in the middle of the fit of one.

``python killed_evaluation.py OUT KEY``
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from tiny_scenes import ENTRIES, MODEL, PROTOCOL, CrossFade, lazily, tiny_views

from reconx_pl.evaluation.runner import evaluate_views

SEEDS = (1, 2, 3)


def main(out: Path, key: str) -> None:
    torch.set_num_threads(1)

    def progress(what: str, done: int, total: int | None) -> None:
        if what == f"{key}: fit" and done > 60:  # generation was the first half
            os.kill(os.getpid(), signal.SIGKILL)

    entries = lazily(*(tiny_views(seed) for seed in SEEDS))
    evaluate_views(entries, CrossFade(), ENTRIES, out, progress=progress, model=MODEL, protocol=PROTOCOL)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
