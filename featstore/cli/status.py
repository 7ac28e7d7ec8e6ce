"""featstore status."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from featstore.cli._files import write_file
from featstore.cli._options import cache_dir_option, json_option, one_dataset_option
from featstore.cli._printing import clock, print_json_rows, print_table
from featstore.cli._words import how_many
from featstore.errors import plain_line
from featstore.fields import time_text, to_plain
from featstore.system.filesystems import format_bytes, free_bytes

if TYPE_CHECKING:
    from featstore.pipeline.write.heartbeat import ShareStatus


_TERMINAL_SECONDS, _LOG_SECONDS = 2.0, 10.0  # from one look to the next


@click.command()
@cache_dir_option
@one_dataset_option
@click.option("--watch", is_flag=True, help="Look again every two seconds, until Ctrl-C.")
@click.option(
    "--failed",
    type=click.Path(dir_okay=False),
    help="Write the videos that failed in the last processes into this .jsonl file, a manifest for --manifest.",
)
@json_option
def status(
    cache_dir: str, dataset: str | None, watch: bool, failed: str | None, as_json: bool
) -> None:
    """Show how far an ingest is, at work or ended, also one of Python; with --json a line for each share.

    An ingest without --shard is called ingest. What each says last is a few seconds old.
    """
    from featstore.pipeline.write.heartbeat import read_statuses
    from featstore.store.paths import dataset_path, is_dataset_name
    from featstore.store.shards.places import LocalPlace

    place = LocalPlace(cache_dir)
    if dataset is not None:
        dataset_path(cache_dir, dataset)
    is_screen = sys.stdout.isatty()
    with contextlib.suppress(KeyboardInterrupt) if watch else contextlib.nullcontext():
        while True:
            names = [dataset] if dataset else filter(is_dataset_name, place.folders())
            said = {name: read_statuses(place, name) for name in names}
            if failed is not None:
                _write_manifest(
                    failed, [found for statuses, _ in said.values() for found in statuses]
                )
            if watch and is_screen and not as_json:
                click.clear()
            _print(cache_dir, dataset, said, as_json=as_json)
            if not watch:
                break
            time.sleep(_TERMINAL_SECONDS if is_screen else _LOG_SECONDS)


def _print(
    cache_dir: str,
    dataset: str | None,
    said: dict[str, tuple[list[ShareStatus], list[str]]],
    *,
    as_json: bool,
) -> None:
    from featstore.pipeline.write.heartbeat import describe_run

    now = time.time()
    shares = [(name, found) for name, (statuses, _) in said.items() for found in statuses]
    if as_json:
        print_json_rows(json.dumps(_facts(name, found, now)) for name, found in shares)
    elif not shares:
        of = f" of {dataset}" if dataset else ""
        click.echo(f"no ingest{of} is known in {plain_line(cache_dir)}")
    else:
        for name, (statuses, _) in said.items():
            if statuses:
                rows = [_row(found, now) for found in statuses]
                print_table([*rows[0]], [tuple(row.values()) for row in rows])
                _print_run(name, describe_run(statuses, now))
        click.echo(f"{format_bytes(free_bytes(cache_dir))} free in {plain_line(cache_dir)}")
    for _, wrong in said.values():
        for sentence in wrong:
            click.echo(sentence, err=True)


def _facts(dataset: str, found: ShareStatus, now: float) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "share": found.share,
        "state": found.state,
        "total": found.videos,
        "videos": found.stored,
        "stored": found.new,
        "failures": found.failed,
        "left": found.left,
        "record_bytes": found.record_bytes,
        "videos_per_second": found.rate,
        "started": time_text(found.started),
        "seen": time_text(found.time),
        "silent": found.is_old(now),
        "host": found.host,
        "pid": found.pid,
    }


def _row(found: ShareStatus, now: float) -> dict[str, Any]:
    """Return the row of a share in the table, by the names of the columns."""
    state = f"{found.state}, silent" if found.is_old(now) else found.state
    return {
        "share": found.share,
        "state": state,
        "videos": found.videos,
        "stored": found.stored,
        "failed": found.failed,
        "left": found.left,
        "videos/s": f"{found.rate:.2f}",
        "host": plain_line(found.host),
        "seen": f"{clock(max(0.0, now - found.time))} ago",
    }


def _print_run(dataset: str, run: dict[str, Any]) -> None:
    click.echo(
        f"{dataset}: {run['stored']} of {how_many(run['videos'], 'video')} stored, {run['failed']} failed, "
        f"{format_bytes(run['record_bytes'])} written"
    )
    if run["seconds_left"] is not None:
        click.echo(f"  {run['videos_per_second']:.2f} videos/s, {clock(run['seconds_left'])} left")
    for reason, count in run["reasons"].items():
        click.echo(f"  failed: {count} x {plain_line(reason)}")
    if run["old"]:
        click.echo(
            f"  silent for more than a minute: {', '.join(run['old'])}; if their processes are gone, run the same "
            "command again, which goes on"
        )


def _write_manifest(path: str, statuses: list[ShareStatus]) -> None:
    lines = [f"{json.dumps(to_plain(video))}\n" for found in statuses for video in found.failures]
    write_file(path, "".join(lines).encode(), "--failed")
