"""Progress on stderr: a bar on a terminal, otherwise a plain line from time to time."""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click

from featstore.cli._printing import clock
from featstore.cli._streams import say
from featstore.system.filesystems import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from featstore.pipeline.summary import Progress

_LINE_SECONDS = 10.0


@contextmanager
def show_progress() -> Iterator[Callable[[Progress], None]]:
    """Yield a function to call with each Progress; the bar disappears at the end of the block."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (BarColumn(), TextColumn("{task.description}"))
    bars = Bars(*columns, console=Console(stderr=True), transient=True)
    task = bars.add_task("waiting for the first video", total=None)

    def show(progress: Progress) -> None:
        done = progress.done + progress.failed
        bars.update(task, completed=done, total=progress.total, description=_line(progress))

    with suppress(OSError):  # the terminal may be gone, especially at the end
        bars.start()
    try:
        yield show
    finally:
        with suppress(OSError):
            bars.stop()


@contextmanager
def show_count(total: int, label: str) -> Iterator[Callable[[int], None] | None]:
    """Yield a function to call with how many more are done, which moves a bar; None if nobody would see it."""
    if not (total and sys.stderr.isatty()):
        yield None
        return
    with click.progressbar(length=total, label=label, file=sys.stderr) as bar:
        yield bar.update


def show_cursor() -> None:
    """Show the terminal's cursor, which a bar hides, when the program ends inside its block."""
    with suppress(OSError):
        if os.isatty(2):
            os.write(2, b"\x1b[?25h")


class _Lines:
    """Prints a line at most every ten seconds, and the last one; none if there is nothing to do."""

    def __init__(self) -> None:
        self._last = 0.0
        self._is_complete = False

    def __call__(self, progress: Progress) -> None:
        if self._is_complete or not progress.total:
            return
        now = time.monotonic()
        self._is_complete = progress.done + progress.failed == progress.total
        if now - self._last >= _LINE_SECONDS or self._is_complete:
            self._last = now
            say(_line(progress))


def _line(progress: Progress) -> str:
    ended = progress.done + progress.failed
    rate = ended / progress.seconds if progress.seconds else 0.0
    left = clock((progress.total - ended) / rate) if rate else "?"
    return (
        f"{ended}/{progress.total} videos, {progress.skipped} skipped, {progress.failed} failed, "
        f"{rate:.2f} videos/s, {format_bytes(progress.record_bytes)} written, {left} left"
    )
