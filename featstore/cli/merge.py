"""featstore merge."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from featstore.cli._interrupts import INTERRUPTED, stop_on_signals
from featstore.cli._options import (
    SOME_FAILED,
    cache_dir_option,
    json_option,
    max_size_option,
    min_free_option,
)
from featstore.cli._printing import print_json
from featstore.cli._progress import show_progress
from featstore.errors import plain, plain_line
from featstore.system.filesystems import format_bytes

if TYPE_CHECKING:
    from featstore.pipeline.summary import Progress
    from featstore.store.maintenance.merge import MergeSummary


@click.command()
@click.argument("source", type=click.Path(exists=True, file_okay=False), metavar="SOURCE_CACHE")
@click.option("--dataset", required=True, help="Name of the dataset in both cache directories.")
@cache_dir_option
@min_free_option
@max_size_option
@json_option
def merge(
    source: str,
    dataset: str,
    cache_dir: str,
    min_free: int,
    max_size: int | None,
    as_json: bool,
) -> None:
    """Copy videos that another cache directory has and this one lacks, byte for byte."""
    from featstore.store.describe import write_cache_meta
    from featstore.store.maintenance.merge import merge_dataset

    started = time.monotonic()
    with stop_on_signals() as stop, show_progress() as show:
        done = merge_dataset(
            source,
            cache_dir,
            dataset,
            min_free=min_free,
            max_size=max_size,
            stop=stop,
            on_progress=lambda summary: show(_progress(summary, time.monotonic() - started)),
        )
    write_cache_meta(cache_dir)
    if as_json:
        failures = [{"video_id": name, "reason": reason} for name, reason in done.failures]
        print_json({**vars(done), "failures": failures})
    else:
        click.echo(
            f"{dataset}: {done.stored} copied, {done.skipped} there before, {len(done.failures)} failed, "
            f"{format_bytes(done.record_bytes)}"
        )
        for name, reason in done.failures:
            click.echo(f"  failed: {plain_line(f'{name}: {reason}')}")
    if done.full:
        click.echo(f"featstore: {plain(done.full)}", err=True)
        sys.exit(1)
    if done.interrupted:
        sys.exit(INTERRUPTED)
    if done.failures:
        sys.exit(SOME_FAILED)


def _progress(summary: MergeSummary, seconds: float) -> Progress:
    from featstore.pipeline.summary import Progress

    return Progress(
        total=summary.total - summary.skipped,
        skipped=summary.skipped,
        done=summary.stored,
        failed=len(summary.failures),
        record_bytes=summary.record_bytes,
        seconds=seconds,
    )
