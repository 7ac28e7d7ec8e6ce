"""What commands that copy videos have in common: options, progress, the printed summary, the exit code."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import click

from featstore.cli._interrupts import INTERRUPTED, stop_on_signals
from featstore.cli._log_options import log_options
from featstore.cli._options import (
    SOME_FAILED,
    filled_cache_dir_option,
    json_option,
    max_size_option,
    min_free_option,
    option_group,
)
from featstore.cli._printing import print_json
from featstore.cli._progress import show_progress
from featstore.cli._streams import say
from featstore.cli._words import how_many
from featstore.errors import plain, plain_line
from featstore.system.filesystems import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from click.decorators import FC

    from featstore.store.maintenance.merge import MergeSummary


class CopySummary(Protocol):
    """What a copy came to, or how far it is; see MergeSummary, ExportSummary and ImportSummary."""

    total: int
    skipped: int
    failures: list[tuple[str, str]]
    interrupted: bool


def copy_options(dataset_help: str, *, renames: bool = False) -> Callable[[FC], FC]:
    """Return a decorator that gives a command what copies a dataset of one cache to another its arguments.

    Args:
        dataset_help: what --dataset names.
        renames: whether the copy may have another name, --as.
    """
    folder = click.Path(exists=True, file_okay=False)
    name = click.option(
        "--as", "name", help="Name of the dataset in the cache directory.  [default: the same]"
    )
    return option_group(
        click.argument("source", type=folder, metavar="SOURCE_CACHE"),
        click.option("--dataset", required=True, help=dataset_help),
        filled_cache_dir_option,
        *([name] if renames else []),
        min_free_option,
        max_size_option,
        json_option,
        log_options,
    )


@contextmanager
def copying(
    copied: Callable[[Any], tuple[int, int]], done: str = "written"
) -> Iterator[dict[str, Any]]:
    """Show the progress of a copy, which signals stop; give its options `stop` and `on_progress`.

    Args:
        copied: returns the number of videos that a summary says are copied, and their bytes.
        done: what happens to the bytes.
    """
    from featstore.pipeline.summary import Progress

    started = time.monotonic()
    with stop_on_signals() as stop, show_progress(done=done) as show:

        def on_progress(summary: CopySummary) -> None:
            videos, size = copied(summary)
            show(
                Progress(
                    total=summary.total,  # what is skipped is known one by one
                    skipped=summary.skipped,
                    done=_left_alone(summary) + videos,
                    failed=len(summary.failures),
                    record_bytes=size,
                    seconds=time.monotonic() - started,
                )
            )

        yield {"stop": stop, "on_progress": on_progress}


def print_copied(
    summary: CopySummary,
    done: int,
    sentence: str,
    *,
    as_json: bool,
    facts: dict[str, Any] | None = None,
    named: str = "video_id",
) -> None:
    """Print the summary as JSON, or a sentence, how many videos are left and those that failed.

    Args:
        summary: of the copy.
        done: videos copied.
        sentence: what was done.
        as_json: print JSON.
        facts: what it says in the words of `--json`; by default the summary's own.
        named: what a failure of the summary names.
    """
    if as_json:
        facts = dict(vars(summary) if facts is None else facts)
        failed = [{named: name, "reason": reason} for name, reason in facts.pop("failures")]
        print_json(facts | {"failed": failed})
        return
    click.echo(sentence)
    left = summary.total - _left_alone(summary) - done - len(summary.failures)
    if left > 0:
        why = "interrupted" if summary.interrupted else "stopped"
        click.echo(f"  {why}: {how_many(left, 'video')} left; the same command goes on")
    for name, reason in summary.failures:
        click.echo(f"  failed: {plain_line(f'{name}: {reason}')}")


def _left_alone(summary: CopySummary) -> int:
    """Return how many videos are there already: the same, or, at an import, newer ones."""
    return summary.skipped + getattr(summary, "newer", 0)


def exit_unless_whole(summary: CopySummary, full: str = "") -> None:
    """End the program with the exit code of a copy that was interrupted, or of which videos failed.

    Args:
        summary: of the copy.
        full: why there was no room, which is printed; empty if there was.
    """
    if full:
        say(f"featstore: {plain(full)}")
        sys.exit(1)
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
    with copying(lambda summary: (summary.stored, summary.record_bytes)) as controls:
        done = copy(*places, **controls, **options)
    write_cache_meta(cache_dir)
    sentence = (
        f"{dataset}: {done.stored} {verb}, {done.skipped} there before, {len(done.failures)} failed, "
        f"{format_bytes(done.record_bytes)}"
    )
    print_copied(done, done.stored, sentence, as_json=as_json)
    if left and (done.full or done.interrupted or done.failures):
        say(f"featstore: {plain_line(left)}")
    exit_unless_whole(done, done.full)
