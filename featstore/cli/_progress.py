"""Progress on stderr: a bar on a terminal, otherwise, and in a notebook, a plain line from time to time."""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from featstore.cli._printing import clock
from featstore.cli._streams import console, is_quiet, note
from featstore.cli._words import how_many
from featstore.defaults import PACE_SECONDS, PACE_VIDEOS
from featstore.system.filesystems import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from featstore.pipeline.summary import Progress

_LINE_SECONDS = 10.0
_BAR_WIDTH = 14  # with its text it fits 60 columns: a terminal that is made narrower would break a longer line in two
_NOTEBOOK = "JPY_PARENT_PID"  # of what a Jupyter kernel starts: its terminal cannot move up to draw a bar again


@contextmanager
def show_progress(
    waiting: str = "waiting for the first video",
    done: str = "written",
    *,
    always: bool = True,
    in_bytes: bool = False,
) -> Iterator[Callable[[Progress], None]]:
    """Yield a function to call with each Progress; the bar disappears at the end of the block.

    Args:
        waiting: what is shown before the first video.
        done: what happened to the bytes.
        always: also print a line where there is no terminal and all is done in less than ten seconds.
        in_bytes: what is counted is bytes, not videos.
    """
    texts = _byte_texts if in_bytes else _texts
    if (
        is_quiet()
        or _NOTEBOOK in os.environ
        or not (sys.stderr.isatty() and console().is_interactive)
    ):
        yield _Lines(texts, done, always=always)
        return
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = BarColumn(_BAR_WIDTH), TextColumn("{task.description}", markup=False)
    bars = Bars(*columns, console=console(), transient=True, redirect_stdout=False)
    task, pace = bars.add_task(waiting, total=None), _Pace()

    def show(progress: Progress) -> None:
        if progress.total:
            ended, text = progress.done + progress.failed, texts(progress, pace(progress), done)
            bars.update(task, completed=ended, total=progress.total, description="\n".join(text))

    with suppress(OSError):  # the terminal may be gone, especially at the end
        bars.start()
    try:
        yield show
    finally:
        with suppress(OSError):
            bars.stop()


@contextmanager
def show_count(total: int | None, waiting: str, done: str = "") -> Iterator[Callable[..., None]]:
    """Yield a function to call for each video, perhaps with its bytes, which moves a bar.

    Args:
        total: number of videos; None or 0 if it is not known.
        waiting: what is shown before the first video.
        done: what happens to their bytes.
    """
    from featstore.pipeline.summary import Progress

    started, progress = time.monotonic(), Progress(total=total or 0, skipped=0)
    with show_progress(waiting, done, always=False) as show:

        def count(size: int = 0) -> None:
            progress.done += 1
            progress.record_bytes += size
            progress.seconds = time.monotonic() - started
            show(progress)

        yield count


@contextmanager
def show_bytes(waiting: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function to call with the bytes that are written, and all of them, which moves a bar."""
    from featstore.pipeline.summary import Progress

    started = time.monotonic()
    with show_progress(waiting, always=False, in_bytes=True) as show:
        yield lambda done, total: show(
            Progress(total=total, skipped=0, done=done, seconds=time.monotonic() - started)
        )


def show_cursor() -> None:
    """Leave the line of a bar and show the cursor, which a bar hides, when the program ends inside its block."""
    with suppress(OSError):
        if os.isatty(2):
            os.write(2, b"\x1b[?25h\n")


class _Lines:
    """Prints a line at most every ten seconds, and the last one; none if there is nothing to do."""

    def __init__(
        self, texts: Callable[[Progress, float, str], tuple[str, str]], done: str, *, always: bool
    ) -> None:
        self._texts, self._done, self._always, self._pace = texts, done, always, _Pace()
        self._last = 0.0 if always else time.monotonic()
        self._is_complete = False

    def __call__(self, progress: Progress) -> None:
        rate = self._pace(progress)
        if self._is_complete or not progress.total:
            return
        now = time.monotonic()
        self._is_complete = progress.done + progress.failed == progress.total
        if now - self._last >= _LINE_SECONDS or (self._is_complete and self._always):
            self._last = now
            note(", ".join(filter(None, self._texts(progress, rate, self._done))))


class _Pace:
    """Videos a second since the first one was done: what passed before, while processes start, tells nothing."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def __call__(self, progress: Progress) -> float:
        """Return it; 0 while it is too early to tell."""
        ended = progress.done + progress.failed
        if self._first is None:
            self._first = (ended, progress.seconds) if progress.done else None
            return 0.0
        videos, seconds = ended - self._first[0], progress.seconds - self._first[1]
        return videos / seconds if videos >= PACE_VIDEOS and seconds >= PACE_SECONDS else 0.0


def _texts(progress: Progress, rate: float, done: str) -> tuple[str, str]:
    """Return how much is done and how much time is left, and how fast it goes."""
    ended = progress.done + progress.failed
    left = progress.total - ended
    counts = [f"{ended}/{how_many(progress.total, 'video')}"]
    if progress.failed:
        counts.append(f"{progress.failed} failed")
    if rate and left:
        counts.append(f"{clock(left / rate)} left")
    speed = [f"{rate:.2f} videos/s"] * bool(rate)
    speed += [f"{format_bytes(progress.record_bytes)} {done}"] * bool(done)
    return ", ".join(counts), ", ".join(speed)


def _byte_texts(progress: Progress, rate: float, done: str) -> tuple[str, str]:
    """Return the same of bytes."""
    counts = [f"{format_bytes(progress.done)} of {format_bytes(progress.total)} {done}"]
    if rate and progress.done < progress.total:
        counts.append(f"{clock((progress.total - progress.done) / rate)} left")
    return ", ".join(counts), f"{format_bytes(int(rate))}/s" if rate else ""
