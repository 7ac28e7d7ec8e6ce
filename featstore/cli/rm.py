"""featstore rm."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

import click

from featstore.cli._completion import complete_video
from featstore.cli._log_options import log_options
from featstore.cli._options import (
    SOME_FAILED,
    cache_dir_option,
    dataset_option,
    digest_prefix,
    json_option,
    open_set,
)
from featstore.cli._patterns import expand
from featstore.cli._printing import print_json
from featstore.cli._streams import say
from featstore.cli._words import how_many
from featstore.errors import FeatstoreError, StoreError, command_line, did_you_mean, plain_line
from featstore.system.filesystems import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from featstore.store.dataset import Dataset

_WILD = "*?["  # an id with one of these may be a pattern


@click.command()
@cache_dir_option
@dataset_option
@click.option(
    "--video",
    "videos",
    multiple=True,
    metavar="ID",
    shell_complete=complete_video,
    help="Remove only this video, or those that a pattern of ids with * and ? fits. Repeatable.",
)
@click.option(
    "--spec",
    callback=digest_prefix,
    help="Remove only this feature set, or the videos only from it; the first 4 or more digits of its digest.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print what would be removed, each video of --video too; then exit.",
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@json_option
@log_options
def rm(
    cache_dir: str,
    dataset: str,
    videos: tuple[str, ...],
    spec: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Remove a dataset, one of its feature sets, or single videos, with their recorded failures."""
    from featstore.store.describe import write_cache_meta
    from featstore.store.maintenance.remove import remove_dataset, remove_set, remove_videos
    from featstore.store.reader import FeatureStore

    if any(set(video) & set(_WILD) for video in videos):
        known = dict.fromkeys(_known(cache_dir, dataset, spec))
        videos = tuple(expand(videos, known))
        yes = yes or not any(video in known for video in videos)  # nothing is removed
    if dry_run:
        _show(cache_dir, dataset, videos, spec, as_json=as_json)
        return
    chosen = open_set(cache_dir, dataset, spec).feature_set.spec if spec else None
    was_default = bool(chosen) and chosen == open_set(cache_dir, dataset, None).feature_set.spec
    if not yes:
        _ask(cache_dir, dataset, videos, spec)
    if videos:
        removed = remove_videos(cache_dir, dataset, videos, spec=chosen)
    elif chosen:
        removed = remove_set(cache_dir, dataset, chosen)
    else:
        link = _link(cache_dir, dataset)
        taken = remove_dataset(cache_dir, dataset)
        if as_json:
            print_json({"dataset": dataset, "file_bytes": taken})
        else:
            click.echo(f"removed {link or f'{dataset}, {format_bytes(taken)}'}")
        return
    write_cache_meta(cache_dir)
    if as_json:
        print_json({"dataset": dataset, "feature_set": chosen and chosen.digest, **vars(removed)})
    else:
        place = f"feature set {chosen.digest[:8]} of {dataset}" if chosen else dataset
        if videos:
            gone = len(set(videos)) - len(removed.missing)
            place = f"{how_many(gone, 'video')} from {place}"
        noun = "record" if videos else "video"  # of a video there is one in each set
        counts = f"{how_many(removed.videos, noun)} and {how_many(removed.failures, 'failure')}"
        line = f"removed {place}, {counts}, {format_bytes(removed.record_bytes)}"
        if removed.record_bytes:
            given_back = command_line("compact", cache_dir=cache_dir, dataset=dataset)
            line += f"; the space is used by later ingests, or given back by {given_back}"
        click.echo(line)
        if was_default and not videos:
            left = FeatureStore(cache_dir)[dataset]
            rows = left.sets.rows()
            now = f"that is {plain_line(left.feature_set.describe())}" if rows else "there is none"
            click.echo(f"  it was the default set; now {now}")
        there: list[str] = []
        if removed.missing:
            with contextlib.suppress(FeatstoreError):  # it may be damaged
                there = [*open_set(cache_dir, dataset, spec)]
        for video in removed.missing:
            near = did_you_mean(video, there)
            click.echo(
                f"  not there: {plain_line(video)}{near and f'; {plain_line(near.strip())}'}"
            )
    if removed.missing:
        sys.exit(SOME_FAILED)


def _link(cache_dir: str, dataset: str) -> str:
    """Return that `dataset` is a link, which is all that is removed; empty if it is a folder."""
    from featstore.store.paths import dataset_path

    path = dataset_path(cache_dir, dataset)
    target = plain_line(os.path.realpath(path))
    return f"the link {dataset}; {target} stays as it is" if path.is_symlink() else ""


def _sets(cache_dir: str, dataset: str, spec: str | None) -> list[Dataset]:
    there = open_set(cache_dir, dataset, spec)
    return [there] if spec else [*there.sets.values()]


def _known(cache_dir: str, dataset: str, spec: str | None) -> Iterator[str]:
    """Yield the ids of all videos of the dataset or the set, those that failed too."""
    for found in _sets(cache_dir, dataset, spec):
        yield from found
        yield from (failure.video_id for failure in found.failures())


def _show(
    cache_dir: str, dataset: str, videos: tuple[str, ...], spec: str | None, *, as_json: bool
) -> None:
    """Print what would be removed."""
    sets = _sets(cache_dir, dataset, spec)
    wanted = frozenset(videos)
    entries = [row for there in sets for row in there.entries()]
    failed = [row for there in sets for row in there.failures()]
    if videos:
        entries = [row for row in entries if row.video_id in wanted]
        failed = [row for row in failed if row.video_id in wanted]
    ids = {row.video_id for row in entries} | {row.video_id for row in failed}
    missing = [video for video in videos if video not in ids]
    link = "" if videos or spec else _link(cache_dir, dataset)
    if link:
        entries, failed = [], []
    size = sum(row.record_bytes for row in entries)
    if as_json:
        counts = {"videos": len(entries), "failures": len(failed), "record_bytes": size}
        digest = sets[0].feature_set.spec.digest if spec else None
        print_json(
            {
                "dataset": dataset,
                "feature_set": digest,
                **counts,
                "missing": missing,
                "dry_run": True,
            }
        )
    else:
        for video in sorted(ids) if videos else ():
            click.echo(plain_line(video))
        place = (
            f"feature set {sets[0].feature_set.spec.digest[:8]} of {dataset}" if spec else dataset
        )
        what = "" if videos else f"all of {place}: "
        counted = f"{how_many(len(entries), 'record')} and {how_many(len(failed), 'failure')}"
        click.echo(f"would remove {link or f'{what}{counted}, {format_bytes(size)}'}")
        for video in missing:
            click.echo(f"  not there: {plain_line(video)}")
    if missing:
        sys.exit(SOME_FAILED)


def _ask(cache_dir: str, dataset: str, videos: tuple[str, ...], spec: str | None) -> None:
    from featstore.store.lost import lost_datasets
    from featstore.store.paths import dataset_names, dataset_path, is_sealed

    if dataset in lost_datasets(cache_dir):
        _confirm(f"Remove what is left of {dataset}, whose file is gone?")
        return
    if dataset not in dataset_names(cache_dir):
        return
    if not (videos or spec) and (link := _link(cache_dir, dataset)):
        _confirm(f"Remove {link}?")
        return
    place = f"feature set {spec} of {dataset}" if spec else dataset
    if not spec and is_sealed(dataset_path(cache_dir, dataset)):
        place = f"the sealed dataset {dataset}"
    some = f"{how_many(len(set(videos)), 'video')} from " if videos else ""
    try:
        sets = _sets(cache_dir, dataset, spec)
        if videos:
            every = f"all {len(sets)} feature sets of " if len(sets) > 1 else ""
            what = f"{some}{every}{place}"
        else:
            noun = "video" if len(sets) == 1 else "record"  # of a video there is one in each set
            what = f"{place} with {how_many(sum(map(len, sets)), noun)}"
    except StoreError:
        if spec:
            raise
        what = f"{some}{place}, which cannot be read"
    _confirm(f"Remove {what}?")


def _confirm(question: str) -> None:
    try:
        click.confirm(question, abort=True, err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        say("")
        raise FeatstoreError(
            "nothing is removed without a yes; --yes gives it in advance"
        ) from None
