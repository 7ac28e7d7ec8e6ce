"""featstore check."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from featstore.cli._log_options import log_options
from featstore.cli._options import cache_dir_option, json_option, one_dataset_option
from featstore.cli._printing import print_json
from featstore.cli._progress import show_count
from featstore.cli._words import how_many, how_many_stored
from featstore.errors import FeatstoreError, StoreError, StoreNotFound, plain_line
from featstore.system.filesystems import format_bytes

if TYPE_CHECKING:
    from featstore.store.maintenance.check import CheckReport


@click.command()
@cache_dir_option
@one_dataset_option
@click.option(
    "--repair",
    is_flag=True,
    help="Repair what is damaged: catalog rows are rebuilt from their records; damaged records are removed, and the "
    "next ingest makes them again.",
)
@json_option
@log_options
def check(cache_dir: str, dataset: str | None, repair: bool, as_json: bool) -> None:
    """Read every record, verify every checksum and report damage; exit code 1 if there is any."""
    from featstore.store.describe import write_cache_meta
    from featstore.store.lost import closed_datasets, lost_datasets
    from featstore.store.maintenance.check import CheckReport, check_dataset
    from featstore.store.maintenance.repair import repair_dataset
    from featstore.store.paths import dataset_names

    lost = lost_datasets(cache_dir) | closed_datasets(cache_dir)
    names = sorted({*dataset_names(cache_dir), *lost}) if dataset is None else [dataset]
    if not names:
        raise StoreNotFound(
            f"there is no dataset in {cache_dir}; --cache-dir is the folder that contains the datasets' folders"
        )
    reports: list[CheckReport] = []
    for name in names:
        sets = 0
        try:
            if name in lost:
                report = CheckReport(name, problems=[lost[name]])
            else:
                stored, sets = _counts(cache_dir, name)
                with show_count(stored, f"reading {name}", "read") as count:
                    check_or_repair = repair_dataset if repair else check_dataset
                    report = check_or_repair(
                        cache_dir, name, on_video=lambda entry: count(entry.record_bytes)
                    )
        except StoreError as exc:  # this one cannot be opened; the others are checked anyway
            if dataset is not None:
                raise
            report = CheckReport(name, problems=[str(exc)])
        reports.append(report)
        if not as_json:
            _print_report(report, sets)
    if repair:
        write_cache_meta(cache_dir)
    if as_json:
        print_json([vars(report) for report in reports])
    if any(report.problems for report in reports):
        sys.exit(1)


def _counts(cache_dir: str, dataset: str) -> tuple[int | None, int]:
    """Return how many records there are to read, None if the manifest cannot tell, and of how many feature sets."""
    from featstore.store.describe import describe_dataset

    try:
        found = describe_dataset(cache_dir, dataset, rows=False)
    except FeatstoreError:
        return None, 0
    return int(found["videos"]), len(found["feature_sets"])


def _print_report(report: CheckReport, sets: int) -> None:
    repaired: list[str] = getattr(report, "repaired", [])
    verdict = "clean" if not report.problems else how_many(len(report.problems), "problem")
    if repaired:
        verdict = f"{how_many(len(repaired), 'problem')} repaired, " + (
            verdict if report.problems else "none left"
        )
    click.echo(
        f"{report.dataset}: {how_many_stored(report.videos, sets)}, {format_bytes(report.record_bytes)} read, "
        f"{how_many(report.failures, 'failure')} on record: {verdict}"
    )
    for problem in [*repaired, *report.problems]:
        click.echo(f"  {plain_line(problem)}")
