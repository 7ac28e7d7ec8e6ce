"""featstore default."""

from __future__ import annotations

import click

from featstore.cli._options import cache_dir_option, dataset_option, digest_prefix
from featstore.errors import plain_line


@click.command()
@cache_dir_option
@dataset_option
@click.argument("spec", required=False, callback=digest_prefix)
def default(cache_dir: str, dataset: str, spec: str | None) -> None:
    """Show the dataset's default feature set, or make another one the default.

    It is the set that is meant wherever none is named: the first one that was made, until another is named here by
    SPEC, the first 4 or more digits of its digest.
    """
    from featstore.store.default_set import set_default
    from featstore.store.describe import write_cache_meta
    from featstore.store.reader import FeatureStore

    if spec:
        set_default(cache_dir, dataset, spec)
        write_cache_meta(cache_dir)
    there = FeatureStore(cache_dir)[dataset].feature_set
    click.echo(f"{dataset}: {plain_line(there.describe())}")
