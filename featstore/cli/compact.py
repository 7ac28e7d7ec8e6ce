"""featstore compact."""

from __future__ import annotations

import click

from featstore.cli._log_options import log_options
from featstore.cli._options import cache_dir_option, dataset_option, json_option
from featstore.cli._printing import print_json
from featstore.cli._progress import show_bytes
from featstore.errors import plain_line
from featstore.system.filesystems import format_bytes


@click.command()
@cache_dir_option
@dataset_option
@json_option
@log_options
def compact(cache_dir: str, dataset: str, as_json: bool) -> None:
    """Return the space of removed and replaced features to the disk; reading goes on in the meantime."""
    from featstore.store.describe import write_cache_meta
    from featstore.store.maintenance.compact import compact_dataset

    with show_bytes(f"compacting {plain_line(dataset)}") as show:
        done = compact_dataset(cache_dir, dataset, on_progress=show)
    write_cache_meta(cache_dir)
    if as_json:
        sizes = {"before_bytes": done.before, "after_bytes": done.after}
        print_json({"dataset": dataset, **sizes, "given_back_bytes": done.before - done.after})
        return
    given_back = format_bytes(done.before - done.after)
    click.echo(
        f"{dataset}: {format_bytes(done.before)} before, {format_bytes(done.after)} after, "
        f"{given_back} given back"
    )
