"""featstore mv."""

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
def mv(
    source: str,
    dataset: str,
    cache_dir: str,
    name: str | None,
    min_free: int,
    max_size: int | None,
    as_json: bool,
) -> None:
    """Move a dataset of SOURCE_CACHE to a cache directory, also the same one under another name.

    It is copied, the copy is read back, and only then SOURCE_CACHE's is removed; a move that was stopped goes on.
    """
    from featstore.store.maintenance.move import move_dataset

    run_copy(
        move_dataset,
        source,
        dataset,
        cache_dir,
        name or dataset,
        verb="moved",
        left=f"dataset {dataset!r} stays in {source} too, as not all of it was moved",
        as_json=as_json,
        min_free=min_free,
        max_size=max_size,
    )
