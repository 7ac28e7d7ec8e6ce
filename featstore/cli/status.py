"""featstore status."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from featstore.cli._files import write_file
from featstore.cli._options import cache_dir_option, dataset_option, json_option
from featstore.cli._printing import clock, print_json_rows, print_table
from featstore.cli._words import how_many
from featstore.errors import plain_line
from featstore.fields import time_text, to_plain
from featstore.system.filesystems import format_bytes

if TYPE_CHECKING:
    from featstore.pipeline.cluster.heartbeat import ShareStatus


@click.command()
@cache_dir_option
@dataset_option
@click.option(
    "--failed",
    type=click.Path(dir_okay=False),
    help="Write the videos that failed in the last processes into this .jsonl file, a manifest for --manifest.",
)
@json_option
def status(cache_dir: str, dataset: str, failed: str | None, as_json: bool) -> None:
    """Show how far the shares of a dataset are that `featstore ingest --shard` makes; with --json a line for each."""
    from featstore.pipeline.cluster.heartbeat import describe_run, read_statuses
    from featstore.store.paths import dataset_path
    from featstore.store.shards.places import LocalPlace

    dataset_path(cache_dir, dataset)
    statuses, wrong = read_statuses(LocalPlace(cache_dir), dataset)
    now = time.time()
    if failed is not None:
        _write_manifest(failed, statuses)
    if as_json:
        print_json_rows(json.dumps(_facts(found, now)) for found in statuses)
    elif not statuses:
        click.echo(f"{dataset}: no share has been ingested into {cache_dir}")
    else:
        rows = [_row(found, now) for found in statuses]
        print_table([*rows[0]], [tuple(row.values()) for row in rows])
        _print_run(dataset, describe_run(statuses, now))
    for sentence in wrong:
        click.echo(sentence, err=True)


def _facts(found: ShareStatus, now: float) -> dict[str, Any]:
    return {
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
        "videos_per_second": f"{found.rate:.2f}",
        "host": plain_line(found.host),
        "seen": f"{clock(max(0.0, now - found.time))} ago",
    }


def _print_run(dataset: str, run: dict[str, Any]) -> None:
    click.echo(
        f"{dataset}: {run['stored']} of {how_many(run['videos'], 'video')} stored, {run['failed']} failed, "
        f"{format_bytes(run['record_bytes'])} by these processes"
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
