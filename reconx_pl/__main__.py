"""``reconx`` and ``python -m reconx_pl``; the doctor neither waits for nor fails with what the others import."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of ``reconx``."""
    if sys.argv[1:2] == ["doctor"]:
        from reconx_pl.cli.doctor.command import main as doctor

        doctor(sys.argv[2:])
        return
    from reconx_pl.cli.main import main as command

    command()


if __name__ == "__main__":
    main()
