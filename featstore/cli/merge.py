"""featstore merge."""

from __future__ import annotations

from typing import Any

import click

from featstore.cli._copies import copy_options, run_copy


@click.command()
@copy_options("Name of the dataset in both cache directories.")
def merge(source: str, dataset: str, cache_dir: str, **options: Any) -> None:
    """Copy videos that another cache directory has and this one lacks, byte for byte."""
    from featstore.store.maintenance.merge import merge_dataset

    run_copy(merge_dataset, source, cache_dir, dataset, **options)
