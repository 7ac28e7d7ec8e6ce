"""What commands that copy videos have in common: progress, the printed summary, the exit code."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

import click

from featstore.cli._interrupts import INTERRUPTED, stop_on_signals
from featstore.cli._options import SOME_FAILED
from featstore.cli._printing import print_json
from featstore.cli._progress import show_progress
from featstore.cli._words import how_many
from featstore.errors import plain, plain_line
from featstore.system.filesystems import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from featstore.pipeline.summary import Progress
    from featstore.store.maintenance.merge import MergeSummary


class CopySummary(Protocol):
    """What a copy came to, or how far it is; see MergeSummary, ExportSummary and ImportSummary."""

    total: int
    skipped: int
    failures: list[tuple[str, str]]
    interrupted: bool


def copy_progress(summary: CopySummary, done: int, size: int, seconds: float) -> Progress:
    """Return the progress of a copy.

    Args:
        summary: how far it is.
        done: videos copied.
        size: their bytes.
        seconds: since it began.
    """
    from featstore.pipeline.summary import Progress

    return Progress(
        total=summary.total - summary.skipped,
        skipped=summary.skipped,
        done=done,
        failed=len(summary.failures),
        record_bytes=size,
        seconds=seconds,
    )


def print_copied(summary: CopySummary, done: int, sentence: str, *, as_json: bool) -> None:
    """Print the summary as JSON, or a sentence, how many videos are left and those that failed.

    Args:
        summary: of the copy.
        done: videos copied.
        sentence: what was done.
        as_json: print JSON.
    """
    if as_json:
        failures = [{"video_id": name, "reason": reason} for name, reason in summary.failures]
        facts: dict[str, Any] = {**vars(summary), "failures": failures}
        print_json(facts)
        return
    click.echo(sentence)
    left = summary.total - summary.skipped - done - len(summary.failures)
    if left > 0:
        why = "interrupted" if summary.interrupted else "stopped"
        click.echo(f"  {why}: {how_many(left, 'video')} left; the same command goes on")
    for name, reason in summary.failures:
        click.echo(f"  failed: {plain_line(f'{name}: {reason}')}")


def exit_unless_whole(summary: CopySummary) -> None:
    """End the program with the exit code of a copy that was interrupted, or of which videos failed."""
    if summary.interrupted:
        sys.exit(INTERRUPTED)
    if summary.failures:
        sys.exit(SOME_FAILED)


def run_copy(
    copy: Callable[..., MergeSummary],
    *places: str,
    verb: str = "copied",
    left: str = "",
    as_json: bool,
    **options: Any,
) -> None:
    """Copy a dataset to another cache, print what was done, and end the program if that was not all.

    Args:
        copy: `merge_dataset`, or a function that takes the same options.
        places: its arguments; the last two are the cache directory that is filled, and the dataset in it.
        verb: what happens to the videos.
        left: what is said of the source if not all was done.
        as_json: print JSON.
        options: of `copy`.
    """
    from featstore.store.describe import write_cache_meta

    cache_dir, dataset = places[-2:]
    started = time.monotonic()
    with stop_on_signals() as stop, show_progress() as show:
        done = copy(
            *places,
            stop=stop,
            on_progress=lambda summary: show(
                copy_progress(
                    summary, summary.stored, summary.record_bytes, time.monotonic() - started
                )
            ),
            **options,
        )
    write_cache_meta(cache_dir)
    sentence = (
        f"{dataset}: {done.stored} {verb}, {done.skipped} there before, {len(done.failures)} failed, "
        f"{format_bytes(done.record_bytes)}"
    )
    print_copied(done, done.stored, sentence, as_json=as_json)
    if left and (done.full or done.interrupted or done.failures):
        click.echo(f"featstore: {plain_line(left)}", err=True)
    if done.full:
        click.echo(f"featstore: {plain(done.full)}", err=True)
        sys.exit(1)
    exit_unless_whole(done)
