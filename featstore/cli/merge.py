"""featstore merge."""

from __future__ import annotations

import sys
import time

import click

from featstore.cli._copies import copy_progress, exit_unless_whole, print_copied
from featstore.cli._interrupts import stop_on_signals
from featstore.cli._options import (
    cache_dir_option,
    json_option,
    max_size_option,
    min_free_option,
)
from featstore.cli._progress import show_progress
from featstore.errors import plain
from featstore.system.filesystems import format_bytes


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
            on_progress=lambda summary: show(
                copy_progress(
                    summary, summary.stored, summary.record_bytes, time.monotonic() - started
                )
            ),
        )
    write_cache_meta(cache_dir)
    sentence = (
        f"{dataset}: {done.stored} copied, {done.skipped} there before, {len(done.failures)} failed, "
        f"{format_bytes(done.record_bytes)}"
    )
    print_copied(done, sentence, as_json=as_json)
    if done.full:
        click.echo(f"featstore: {plain(done.full)}", err=True)
        sys.exit(1)
    exit_unless_whole(done)
