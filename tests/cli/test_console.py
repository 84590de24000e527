"""The progress bar of the commands: what, how much, of how much."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import DownloadColumn, ProgressColumn, TaskProgressColumn

from reconx_pl.cli import console as consoles
from reconx_pl.cli.console import progress_bar


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is written where there is no terminal: the last state of the bar."""
    text = io.StringIO()
    monkeypatch.setattr(consoles, "console", Console(file=text, width=120))
    return text


@pytest.mark.parametrize(
    ("numbers", "call", "shown"),
    [
        (None, ("rendering", 3, 24), "3/24"),
        (None, ("packing garden", 3, None), "3/?"),
        (DownloadColumn(), ("reading a.safetensors", 2_000_000, 8_000_000), "2.0/8.0 MB"),
        (TaskProgressColumn(), ("garden: fit", 50, 100), "50%"),
    ],
    ids=["counts", "no total", "bytes", "percent"],
)
def test_the_bar_says_what_and_how_much(
    screen: io.StringIO, numbers: ProgressColumn | None, call: tuple[str, int, int | None], shown: str
) -> None:
    with progress_bar("waiting", numbers) as progress:
        progress(*call)
    last = screen.getvalue().strip()
    assert call[0] in last and shown in last


def test_a_total_that_is_no_longer_known_is_no_longer_shown(screen: io.StringIO) -> None:
    with progress_bar() as progress:
        progress("fit", 7, 9)
        progress("report", 0, None)
    last = screen.getvalue().strip()
    assert "report" in last and "0/?" in last
