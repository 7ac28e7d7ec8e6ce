"""featstore default."""

from __future__ import annotations

import click

from featstore.cli._options import cache_dir_option, dataset_option, digest_prefix, json_option
from featstore.cli._printing import print_json
from featstore.errors import plain_line


@click.command()
@cache_dir_option
@dataset_option
@json_option
@click.argument("spec", required=False, callback=digest_prefix)
def default(cache_dir: str, dataset: str, spec: str | None, as_json: bool) -> None:
    """Show the dataset's default feature set, or make another one the default.

    It is the set that is meant wherever none is named: the first one that got a video, until another is named here
    by SPEC, the first 4 or more digits of its digest.
    """
    from featstore.store.default_set import set_default
    from featstore.store.describe import write_cache_meta
    from featstore.store.reader import FeatureStore

    if spec:
        set_default(cache_dir, dataset, spec)
        write_cache_meta(cache_dir)
    there = FeatureStore(cache_dir)[dataset].feature_set
    if as_json:
        print_json({"dataset": dataset, "feature_set": there.spec.digest})
        return
    click.echo(f"{dataset}: {plain_line(there.describe())}")
