"""featstore compact."""

from __future__ import annotations

import click

from featstore.cli._options import cache_dir_option, dataset_option
from featstore.system.filesystems import format_bytes


@click.command()
@cache_dir_option
@dataset_option
def compact(cache_dir: str, dataset: str) -> None:
    """Return the space of removed and replaced features to the disk; reading goes on in the meantime."""
    from featstore.store.describe import write_cache_meta
    from featstore.store.maintenance.compact import compact_dataset

    done = compact_dataset(cache_dir, dataset)
    write_cache_meta(cache_dir)
    given_back = format_bytes(done.before - done.after)
    click.echo(
        f"{dataset}: {format_bytes(done.before)} before, {format_bytes(done.after)} after, "
        f"{given_back} given back"
    )
