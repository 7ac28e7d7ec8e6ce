"""featstore check, rm, compact, seal and merge."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from featstore.cli._interrupts import INTERRUPTED, stop_on_signals
from featstore.cli._options import cache_dir_option, digits, json_option, size
from featstore.cli._printing import print_json
from featstore.cli._progress import show_progress
from featstore.cli.ingest import SOME_FAILED
from featstore.errors import StoreError, StoreNotFound, plain, plain_line
from featstore.system.filesystems import format_bytes

if TYPE_CHECKING:
    from featstore.store.maintenance.check import CheckReport
    from featstore.store.maintenance.merge import MergeSummary


@click.command()
@cache_dir_option
@click.option("--dataset", help="This dataset alone.")
@click.option(
    "--repair",
    is_flag=True,
    help="Mend what is damaged: rows from their records; damaged records are made again by the next ingest.",
)
@json_option
def check(cache_dir: str, dataset: str | None, repair: bool, as_json: bool) -> None:
    """Read every record and checksum; say what is damaged. Exit 1 while something is."""
    from featstore.store.lost import lost_datasets
    from featstore.store.maintenance.check import CheckReport, check_dataset
    from featstore.store.maintenance.repair import repair_dataset
    from featstore.store.paths import dataset_names

    lost = lost_datasets(cache_dir)
    names = sorted({*dataset_names(cache_dir), *lost}) if dataset is None else [dataset]
    if not names:
        raise StoreNotFound(
            f"there is no dataset in {cache_dir}; --cache-dir is the folder that holds the datasets' own"
        )
    reports: list[CheckReport] = []
    for name in names:
        try:
            if name in lost:
                report = CheckReport(name, problems=[lost[name]])
            else:
                report = (repair_dataset if repair else check_dataset)(cache_dir, name)
        except (
            StoreError
        ) as exc:  # of one that cannot be opened; the others are looked at all the same
            if dataset is not None:
                raise
            report = CheckReport(name, problems=[str(exc)])
        reports.append(report)
        if not as_json:
            _print_report(report)
    if as_json:
        print_json([vars(report) for report in reports])
    if any(report.problems for report in reports):
        sys.exit(1)


@click.command()
@cache_dir_option
@click.option("--dataset", required=True, help="The dataset.")
@click.option(
    "--video", "videos", multiple=True, metavar="ID", help="Remove this video alone. Repeatable."
)
@click.option(
    "--spec",
    callback=digits,
    help="Remove this feature set alone, or the videos from it alone: 4 or more first digits of its digest.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def rm(cache_dir: str, dataset: str, videos: tuple[str, ...], spec: str | None, yes: bool) -> None:
    """Remove a dataset, one of its feature sets, or single videos; failures too."""
    from featstore.store.describe import write_cache_meta
    from featstore.store.maintenance.remove import remove_dataset, remove_set, remove_videos
    from featstore.store.reader import FeatureStore

    chosen = FeatureStore(cache_dir)[dataset].select(spec=spec).spec if spec else None
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


@click.command()
@cache_dir_option
@click.option("--dataset", required=True, help="The dataset.")
def compact(cache_dir: str, dataset: str) -> None:
    """Give the space of removed and replaced features back to the disk; readers go on meanwhile."""
    from featstore.store.describe import write_cache_meta
    from featstore.store.maintenance.compact import compact_dataset

    done = compact_dataset(cache_dir, dataset)
    write_cache_meta(cache_dir)
    click.echo(
        f"{dataset}: {format_bytes(done.before)} before, {format_bytes(done.after)} after, "
        f"{format_bytes(done.before - done.after)} given back"
    )


@click.command()
@cache_dir_option
@click.option("--dataset", required=True, help="The dataset.")
@click.option("--undo", is_flag=True, help="Lift the seal; copies the dataset's file.")
def seal(cache_dir: str, dataset: str, undo: bool) -> None:
    """Refuse all writes to a finished dataset, so that it is read without locks: by users who may not write it too."""
    from featstore.store.maintenance.seal import seal_dataset, unseal_dataset

    (unseal_dataset if undo else seal_dataset)(cache_dir, dataset)
    click.echo(f"{dataset} is {'open for writing again' if undo else 'sealed'}")


@click.command()
@click.argument("source", type=click.Path(exists=True, file_okay=False), metavar="SOURCE_CACHE")
@click.option("--dataset", required=True, help="The dataset, called the same in both caches.")
@cache_dir_option
@click.option(
    "--min-free",
    type=size,
    default="1GiB",
    show_default=True,
    help="Bytes to leave free on the disk.",
)
@click.option("--max-size", type=size, help="Bytes the cache directory may take.")
@json_option
def merge(
    source: str,
    dataset: str,
    cache_dir: str,
    min_free: int,
    max_size: int | None,
    as_json: bool,
) -> None:
    """Copy the videos that another cache has and this one lacks, as they are stored there."""
    from featstore.store.describe import write_cache_meta
    from featstore.store.maintenance.merge import merge_dataset

    begun = time.monotonic()
    with stop_on_signals() as stop, show_progress() as show:
        done = merge_dataset(
            source,
            cache_dir,
            dataset,
            min_free=min_free,
            max_size=max_size,
            stop=stop,
            on_progress=lambda summary: show(_progress(summary, time.monotonic() - begun)),
        )
    write_cache_meta(cache_dir)
    if as_json:
        print_json(vars(done))
    else:
        click.echo(
            f"{dataset}: {done.stored} copied, {done.skipped} there before, {len(done.failures)} failed, "
            f"{format_bytes(done.record_bytes)}"
        )
        for name, reason in done.failures:
            click.echo(f"  failed: {plain_line(f'{name}: {reason}')}")
    if done.full:
        click.echo(f"featstore: {plain(done.full)}", err=True)
        sys.exit(1)
    if done.interrupted:
        sys.exit(INTERRUPTED)
    if done.failures:
        sys.exit(SOME_FAILED)


def _print_report(report: CheckReport) -> None:
    repaired: list[str] = getattr(report, "repaired", [])
    verdict = "clean" if not report.problems else f"{len(report.problems)} problems"
    if repaired:
        verdict = f"{len(repaired)} problems repaired, " + (
            verdict if report.problems else "none left"
        )
    click.echo(
        f"{report.dataset}: {report.videos} videos, {format_bytes(report.record_bytes)} read, "
        f"{report.failures} failures on record: {verdict}"
    )
    for problem in [*repaired, *report.problems]:
        click.echo(f"  {plain_line(problem)}")


def _ask(cache_dir: str, dataset: str, videos: tuple[str, ...], spec: str | None) -> None:
    from featstore.store.lost import lost_datasets
    from featstore.store.paths import dataset_names, dataset_path, is_sealed
    from featstore.store.reader import FeatureStore

    if dataset in lost_datasets(cache_dir):
        click.confirm(
            f"Remove what is left of {dataset}, whose file is gone?", abort=True, err=True
        )
        return
    if dataset not in dataset_names(cache_dir):
        return
    where = f"feature set {spec} of {dataset}" if spec else dataset
    if not spec and is_sealed(dataset_path(cache_dir, dataset)):
        where = f"the sealed dataset {dataset}"
    if videos:
        what = f"{len(videos)} videos from {where}"
    else:
        try:
            there = FeatureStore(cache_dir)[dataset]
            chosen = there.select(spec=spec).spec if spec else None
            what = f"{where} with the features of {sum(1 for _ in there.entries(chosen))} videos"
        except StoreError:
            if spec:
                raise
            what = f"{where}, which cannot be read"
    click.confirm(f"Remove {what}?", abort=True, err=True)


def _progress(summary: MergeSummary, seconds: float) -> Any:
    from featstore.pipeline.summary import Progress

    return Progress(
        total=summary.total - summary.skipped,
        skipped=summary.skipped,
        done=summary.stored,
        failed=len(summary.failures),
        record_bytes=summary.record_bytes,
        seconds=seconds,
    )
