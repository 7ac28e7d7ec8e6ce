"""featstore push."""

from __future__ import annotations

import click

from featstore.cli._log_options import log_options
from featstore.cli._options import datasets_option, json_option
from featstore.cli._printing import print_json
from featstore.cli._words import how_many
from featstore.system.filesystems import format_bytes


@click.command()
@click.argument("cache", type=click.Path(exists=True, file_okay=False), metavar="CACHE")
@click.argument("url", metavar="URL")
@datasets_option
@json_option
@log_options
def push(cache: str, url: str, datasets: tuple[str, ...], as_json: bool) -> None:
    """Copy datasets of the cache directory CACHE to an object store, as s3://bucket/prefix.

    URL may be a folder too, as on a network file system. What is there already is not copied again, so a push that was
    stopped goes on; readers see a dataset when all of it is there.
    """
    from featstore.store.maintenance import push_pull

    done = push_pull.push(
        cache, url, datasets, lambda found: None if as_json else show(found, "pushed")
    )
    if as_json:
        print_json([vars(found) for found in done])


def show(found: object, verb: str) -> None:
    """Print what was done of one dataset."""
    row = vars(found)
    click.echo(
        f"{row['dataset']}: {how_many(row['copied'], 'shard')} {verb}, {format_bytes(row['copied_bytes'])}; "
        f"{how_many(row['shards'], 'shard')} in all"
    )
