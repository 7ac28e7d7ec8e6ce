"""featstore cp."""

from __future__ import annotations

from typing import Any

import click

from featstore.cli._copies import copy_options, run_copy


@click.command()
@copy_options("Name of the dataset in SOURCE_CACHE.", renames=True)
def cp(source: str, dataset: str, cache_dir: str, name: str | None, **options: Any) -> None:
    """Copy a dataset of SOURCE_CACHE to a cache directory, also the same one under another name.

    Failures come along; what the copy has already stays, so a copy that was stopped goes on.
    """
    from featstore.store.maintenance.merge import merge_dataset

    places = source, cache_dir, name or dataset
    run_copy(merge_dataset, *places, source_dataset=dataset, failures=True, **options)
