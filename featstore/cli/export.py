"""featstore export."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from featstore.cli._interrupts import INTERRUPTED, stop_on_signals
from featstore.cli._options import (
    SOME_FAILED,
    cache_dir_option,
    dataset_option,
    json_option,
    open_set,
    spec_option,
    which_nframe_option,
)
from featstore.cli._printing import print_json
from featstore.cli._progress import show_progress
from featstore.errors import plain_line
from featstore.system.filesystems import format_bytes

if TYPE_CHECKING:
    from featstore.formats.export import ExportSummary
    from featstore.pipeline.summary import Progress


@click.command()
@cache_dir_option
@dataset_option
@which_nframe_option
@spec_option
@click.option(
    "--video",
    "patterns",
    multiple=True,
    help="Id of a video, or a pattern of ids with * and ?; may be repeated. All videos by default.",
)
@click.option(
    "--to",
    "name",
    type=click.Choice(["safetensors", "npz", "npy", "pt"]),
    required=True,
    help="Format of the files: as stored, with scales and metadata, or npy: float32 values only.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False),
    help="Folder of the files and of index.jsonl, which says which file is which video's.",
)
@json_option
def export(
    cache_dir: str,
    dataset: str,
    nframe: int | None,
    spec: str | None,
    patterns: tuple[str, ...],
    name: str,
    out: str,
    as_json: bool,
) -> None:
    """Write the features of a dataset to a folder, a file a video; what is there already is skipped."""
    from featstore.formats.export import export_dataset

    there = open_set(cache_dir, dataset, spec, nframe)
    started = time.monotonic()
    with stop_on_signals() as stop, show_progress() as show:
        done = export_dataset(
            there,
            out,
            f".{name}",
            patterns=patterns,
            stop=stop,
            on_progress=lambda summary: show(_progress(summary, time.monotonic() - started)),
        )
    if as_json:
        failures = [{"video_id": video, "reason": reason} for video, reason in done.failures]
        print_json({**vars(done), "failures": failures})
    else:
        click.echo(
            f"{dataset}: {done.exported} exported, {done.skipped} there before, {len(done.failures)} failed, "
            f"{format_bytes(done.file_bytes)} in {plain_line(out)}"
        )
        for video, reason in done.failures:
            click.echo(f"  failed: {plain_line(f'{video}: {reason}')}")
    if done.interrupted:
        sys.exit(INTERRUPTED)
    if done.failures:
        sys.exit(SOME_FAILED)


def _progress(summary: ExportSummary, seconds: float) -> Progress:
    from featstore.pipeline.summary import Progress

    return Progress(
        total=summary.total - summary.skipped,
        skipped=summary.skipped,
        done=summary.exported,
        failed=len(summary.failures),
        record_bytes=summary.file_bytes,
        seconds=seconds,
    )
