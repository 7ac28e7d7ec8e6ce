"""featstore merge."""

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
    from featstore.store.maintenance.merge import merge_dataset

    run_copy(
        merge_dataset,
        source,
        cache_dir,
        dataset,
        as_json=as_json,
        min_free=min_free,
        max_size=max_size,
    )
