"""featstore cp."""

from __future__ import annotations

import click

from featstore.cli._copies import run_copy
from featstore.cli._options import (
    cache_dir_option,
    json_option,
    max_size_option,
    min_free_option,
)


@click.command()
@click.argument("source", type=click.Path(exists=True, file_okay=False), metavar="SOURCE_CACHE")
@click.option("--dataset", required=True, help="Name of the dataset in SOURCE_CACHE.")
@cache_dir_option
@click.option(
    "--as", "name", help="Name of the dataset in the cache directory.  [default: the same]"
)
@min_free_option
@max_size_option
@json_option
def cp(
    source: str,
    dataset: str,
    cache_dir: str,
    name: str | None,
    min_free: int,
    max_size: int | None,
    as_json: bool,
) -> None:
    """Copy a dataset of SOURCE_CACHE to a cache directory, also the same one under another name.

    Failures come along; what the copy has already stays, so a copy that was stopped goes on.
    """
    from featstore.store.maintenance.merge import merge_dataset

    run_copy(
        merge_dataset,
        source,
        cache_dir,
        name or dataset,
        verb="copied",
        as_json=as_json,
        min_free=min_free,
        max_size=max_size,
        source_dataset=dataset,
        failures=True,
    )
