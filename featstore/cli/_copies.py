"""What commands that copy videos, merge and export, have in common: progress, the printed summary, the exit code."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Protocol

import click

from featstore.cli._interrupts import INTERRUPTED
from featstore.cli._options import SOME_FAILED
from featstore.cli._printing import print_json
from featstore.errors import plain_line

if TYPE_CHECKING:
    from featstore.pipeline.summary import Progress


class CopySummary(Protocol):
    """What a copy came to, or how far it is; see MergeSummary and ExportSummary."""

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


def print_copied(summary: CopySummary, sentence: str, *, as_json: bool) -> None:
    """Print the summary as JSON, or a sentence and the videos that failed."""
    if as_json:
        failures = [{"video_id": name, "reason": reason} for name, reason in summary.failures]
        facts: dict[str, Any] = {**vars(summary), "failures": failures}
        print_json(facts)
        return
    click.echo(sentence)
    for name, reason in summary.failures:
        click.echo(f"  failed: {plain_line(f'{name}: {reason}')}")


def exit_unless_whole(summary: CopySummary) -> None:
    """End the program with the exit code of a copy that was interrupted, or of which videos failed."""
    if summary.interrupted:
        sys.exit(INTERRUPTED)
    if summary.failures:
        sys.exit(SOME_FAILED)
