"""The console of the command line, and its progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True)


@contextmanager
def progress_bar(total: int | None) -> Iterator[Callable[..., None]]:
    """A progress bar with time left; the callback takes what is done now, how many are done, and if known of all."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total)
        yield lambda text, done, of=None: progress.update(task, description=text, completed=done, total=of)


@contextmanager
def share_bar() -> Iterator[Callable[[str, float], None]]:
    """A progress bar of one scene after another; the callback takes what is done now and the share that is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("loading the model", total=1.0)
        yield lambda text, share: progress.update(task, description=text, completed=share)
