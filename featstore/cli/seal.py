"""featstore seal."""

from __future__ import annotations

import click

from featstore.cli._log_options import log_options
from featstore.cli._options import cache_dir_option, dataset_option, json_option
from featstore.cli._printing import print_json


@click.command()
@cache_dir_option
@dataset_option
@click.option("--undo", is_flag=True, help="Remove the seal. Copies the dataset's file.")
@json_option
@log_options
def seal(cache_dir: str, dataset: str, undo: bool, as_json: bool) -> None:
    """Refuse all writes to a finished dataset, so that it is read without locks, also by users who cannot write it."""
    from featstore.store.describe import write_cache_meta
    from featstore.store.maintenance.seal import seal_dataset, unseal_dataset
    from featstore.store.paths import dataset_path, is_sealed

    was_sealed = is_sealed(dataset_path(cache_dir, dataset))
    (unseal_dataset if undo else seal_dataset)(cache_dir, dataset)
    write_cache_meta(cache_dir)
    if as_json:
        print_json({"dataset": dataset, "sealed": not undo})
        return
    again = "open for writing again" if was_sealed else "not sealed"
    click.echo(f"{dataset} is {again if undo else 'sealed'}")
