"""``reconx`` and ``python -m reconx_pl``: each command imports what it needs, and the doctor needs nothing."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of ``reconx``."""
    name, rest = "".join(sys.argv[1:2]), sys.argv[2:]  # sys.argv stays: Lightning starts further ranks with it
    if name == "doctor":
        from reconx_pl.cli.doctor.command import main as doctor

        doctor(rest)
    elif name == "train":
        from reconx_pl.cli.train import main as train

        train(rest, "reconx train")
    elif name == "evaluate":
        from reconx_pl.cli.evaluate_command import evaluate_main

        evaluate_main(rest, "reconx evaluate")
    else:
        from reconx_pl.cli.main import main as command

        command()


if __name__ == "__main__":
    main()
