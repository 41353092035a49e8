"""Progress on standard error: sentences, and bars with the time left on a terminal.

All of it goes to standard error; standard output is for results.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

from rich import console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["Console", "leave", "progress_bar", "say", "shown", "track"]

T = TypeVar("T")


def say(text: str) -> None:
    """Print one line on standard error, with what would steer a terminal written out.

    Without a reader the work goes on, and where standard error is closed the line is not printed
    among the results.
    """
    if sys.stderr is None:
        return
    try:
        print(shown(text), file=sys.stderr, flush=True)
    except OSError:
        leave(sys.stderr)


def leave(stream: TextIO) -> None:
    """Lead a stream without a reader to nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def shown(text: str) -> str:
    """``text`` with letters that a terminal obeys, or does not show, as their escapes.

    >>> shown("a" + chr(27) + "b") == "a" + repr(chr(27))[1:-1] + "b"
    True
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class Console(console.Console):
    """Console whose reader may leave as that of any output: no error, no exit of its own."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class _Rate(ProgressColumn):
    """Column with the recent rate per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s")


def progress_bar() -> Progress:
    """An empty bar; silent where standard error is not a terminal."""
    shown_on = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=shown_on,
        disable=not shown_on.is_terminal,
        transient=True,
    )


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """``items``, with a bar that moves as they are taken."""
    with progress_bar() as bar:
        yield from bar.track(items, total=total, description=what)
