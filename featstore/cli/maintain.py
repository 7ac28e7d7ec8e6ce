"""featstore check and rm."""

from __future__ import annotations

import sys

import click

from featstore.cli.options import cache_dir_option, json_option
from featstore.cli.printing import gib, plain, print_json


@click.command()
@cache_dir_option
@click.option("--dataset", help="This dataset alone.")
@json_option
def check(cache_dir: str, dataset: str | None, as_json: bool) -> None:
    """Read every record and checksum; say what is damaged."""
    from featstore.store.check import check_dataset
    from featstore.store.layout import dataset_names

    reports = [
        check_dataset(cache_dir, name)
        for name in ([dataset] if dataset else dataset_names(cache_dir))
    ]
    if as_json:
        print_json([vars(report) for report in reports])
    else:
        for report in reports:
            verdict = "clean" if not report.problems else f"{len(report.problems)} problems"
            click.echo(
                f"{report.dataset}: {report.videos} videos, {gib(report.record_bytes)} read, "
                f"{report.failures} failures on record: {verdict}"
            )
            for problem in report.problems:
                click.echo(f"  {plain(problem)}")
    if any(report.problems for report in reports):
        sys.exit(1)


@click.command()
@cache_dir_option
@click.option("--dataset", required=True, help="The dataset to remove.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def rm(cache_dir: str, dataset: str, yes: bool) -> None:
    """Remove a dataset: its features, feature sets and failures."""
    from featstore.store.info import write_cache_meta
    from featstore.store.layout import dataset_names
    from featstore.store.reader import FeatureStore
    from featstore.store.remove import remove_dataset

    if not yes and dataset in dataset_names(cache_dir):
        count = len(FeatureStore(cache_dir)[dataset])
        click.confirm(
            f"Remove {dataset} with the features of {count} videos?", abort=True, err=True
        )
    taken = remove_dataset(cache_dir, dataset)
    write_cache_meta(cache_dir)
    click.echo(f"removed {dataset}, {gib(taken)}")
