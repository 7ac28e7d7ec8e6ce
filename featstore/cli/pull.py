"""featstore pull."""

from __future__ import annotations

import click

from featstore.cli._log_options import log_options
from featstore.cli._options import datasets_option, filled_cache_dir_option, json_option
from featstore.cli._printing import print_json
from featstore.cli.push import show


@click.command()
@click.argument("url", metavar="URL")
@filled_cache_dir_option
@datasets_option
@json_option
@log_options
def pull(url: str, cache_dir: str, datasets: tuple[str, ...], as_json: bool) -> None:
    """Copy datasets that were pushed into a cache directory, whole, as sealed shards.

    URL is as s3://bucket/prefix, https://host/prefix or hf://datasets/owner/name, or a folder. What is here already is
    not copied again. To read single videos without a copy of the whole, featstore.open(URL, local=FOLDER).
    """
    from featstore.store.describe import write_cache_meta
    from featstore.store.maintenance import push_pull

    done = push_pull.pull(
        url, cache_dir, datasets, lambda found: None if as_json else show(found, "pulled")
    )
    write_cache_meta(cache_dir)
    if as_json:
        print_json([vars(found) for found in done])
