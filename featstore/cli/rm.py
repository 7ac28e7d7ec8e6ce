"""featstore rm."""

from __future__ import annotations

import sys

import click

from featstore.cli._options import (
    SOME_FAILED,
    cache_dir_option,
    dataset_option,
    digest_prefix,
    open_set,
)
from featstore.errors import StoreError, plain_line
from featstore.system.filesystems import format_bytes


@click.command()
@cache_dir_option
@dataset_option
@click.option(
    "--video", "videos", multiple=True, metavar="ID", help="Remove only this video. Repeatable."
)
@click.option(
    "--spec",
    callback=digest_prefix,
    help="Remove only this feature set, or the videos only from it; the first 4 or more digits of its digest.",
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def rm(cache_dir: str, dataset: str, videos: tuple[str, ...], spec: str | None, yes: bool) -> None:
    """Remove a dataset, one of its feature sets, or single videos, with their recorded failures."""
    from featstore.store.describe import write_cache_meta
    from featstore.store.maintenance.remove import remove_dataset, remove_set, remove_videos

    chosen = open_set(cache_dir, dataset, spec).feature_set.spec if spec else None
    if not yes:
        _ask(cache_dir, dataset, videos, spec)
    if videos:
        removed = remove_videos(cache_dir, dataset, videos, spec=chosen)
    elif chosen:
        removed = remove_set(cache_dir, dataset, chosen)
    else:
        taken = remove_dataset(cache_dir, dataset)
        click.echo(f"removed {dataset}, {format_bytes(taken)}")
        return
    write_cache_meta(cache_dir)
    click.echo(
        f"removed {removed.videos} videos and {removed.failures} failures of {dataset}, "
        f"{format_bytes(removed.record_bytes)}; the space is used by later ingests, or given back by "
        f"featstore compact --dataset {dataset}"
    )
    for video in removed.missing:
        click.echo(f"  not there: {plain_line(video)}")
    if removed.missing:
        sys.exit(SOME_FAILED)


def _ask(cache_dir: str, dataset: str, videos: tuple[str, ...], spec: str | None) -> None:
    from featstore.store.lost import lost_datasets
    from featstore.store.paths import dataset_names, dataset_path, is_sealed

    if dataset in lost_datasets(cache_dir):
        click.confirm(
            f"Remove what is left of {dataset}, whose file is gone?", abort=True, err=True
        )
        return
    if dataset not in dataset_names(cache_dir):
        return
    place = f"feature set {spec} of {dataset}" if spec else dataset
    if not spec and is_sealed(dataset_path(cache_dir, dataset)):
        place = f"the sealed dataset {dataset}"
    if videos:
        what = f"{len(videos)} videos from {place}"
    else:
        try:
            there = open_set(cache_dir, dataset, spec)
            sets = [there] if spec else there.sets.values()
            what = f"{place} with the features of {sum(map(len, sets))} videos"
        except StoreError:
            if spec:
                raise
            what = f"{place}, which cannot be read"
    click.confirm(f"Remove {what}?", abort=True, err=True)
