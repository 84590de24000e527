"""The console of the command line, and its progress bars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

if TYPE_CHECKING:  # the doctor shows progress where torch does not import
    from reconx_pl.types import Progress

console = Console(stderr=True)


@contextmanager
def progress_bar(what: str = "", numbers: ProgressColumn | None = None) -> Iterator[Progress]:
    """A progress bar with time left, as a ``Progress``.

    Args:
        what: stands before the bar until the work says what it does.
        numbers: how counts are shown; None shows them as they are, ``DownloadColumn()`` as bytes,
            ``TaskProgressColumn()`` in percent.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), numbers or MofNCompleteColumn())
    with Bar(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(what, total=None)

        def show(what: str, done: int, total: int | None) -> None:
            if total is None:
                bar.tasks[0].total = None  # ``update`` takes None for "as before"
            bar.update(task, description=what, completed=done, total=total)

        yield show
