"""featstore mv."""

from __future__ import annotations

from typing import Any

import click

from featstore.cli._copies import copy_options, run_copy


@click.command()
@copy_options("Name of the dataset in SOURCE_CACHE.", renames=True)
def mv(source: str, dataset: str, cache_dir: str, name: str | None, **options: Any) -> None:
    """Move a dataset of SOURCE_CACHE to a cache directory, also the same one under another name.

    It is copied, the copy is read back, and only then SOURCE_CACHE's is removed; a move that was stopped goes on.
    """
    from featstore.store.maintenance.move import move_dataset

    left = f"dataset {dataset!r} stays in {source} too, as not all of it was moved"
    places = source, dataset, cache_dir, name or dataset
    run_copy(move_dataset, *places, verb="moved", left=left, **options)
