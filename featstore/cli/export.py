"""featstore export."""

from __future__ import annotations

import click

from featstore.cli._completion import complete_video
from featstore.cli._copies import copying, exit_unless_whole, print_copied
from featstore.cli._log_options import log_options
from featstore.cli._options import (
    cache_dir_option,
    dataset_option,
    json_option,
    open_set,
    size,
    spec_option,
    which_nframe_option,
)
from featstore.cli._streams import say
from featstore.cli._words import how_many
from featstore.errors import plain_line
from featstore.formats.names import EXPORTED
from featstore.system.filesystems import format_bytes


@click.command()
@cache_dir_option
@dataset_option
@which_nframe_option
@spec_option
@click.option(
    "--video",
    "patterns",
    multiple=True,
    shell_complete=complete_video,
    help="Id of a video, or a pattern of ids with * and ?; may be repeated. All videos by default.",
)
@click.option(
    "--to",
    "name",
    type=click.Choice(EXPORTED),
    required=True,
    help="Format of the files: as stored, with scales and metadata, or npy: float32 values only; hf: Parquet files "
    "for datasets.load_dataset.",
)
@click.option(
    "--shard-size",
    type=size,
    help="With hf: bytes of records from which on a file is full.  [default: a file a video]",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False),
    help="Folder of the files and of index.jsonl, which says which file is which video's.",
)
@json_option
@log_options
def export(
    cache_dir: str,
    dataset: str,
    nframe: int | None,
    spec: str | None,
    patterns: tuple[str, ...],
    name: str,
    shard_size: int | None,
    out: str,
    as_json: bool,
) -> None:
    """Write the features of a dataset to a folder, a file a video; what is there already is skipped."""
    from featstore.formats.export import export_dataset

    if shard_size and name != "hf":
        raise click.UsageError(f"--shard-size is of hf; {name} is a file a video")
    there = open_set(cache_dir, dataset, spec, nframe)
    with copying(lambda summary: (summary.exported, summary.file_bytes)) as controls:
        done = export_dataset(
            there,
            out,
            ".parquet" if name == "hf" else f".{name}",
            patterns=patterns,
            shard_size=shard_size or 0,
            **controls,
        )
    sentence = (
        f"{dataset}: {done.exported} exported, {done.skipped} there before, {len(done.failures)} failed, "
        f"{format_bytes(done.file_bytes)} in {plain_line(out)}"
    )
    print_copied(done, done.exported, sentence, as_json=as_json)
    others = len(there.sets) - 1
    if spec is None and nframe is None and others > 0:
        say(
            f"exported set {there.feature_set.spec.digest[:8]}; {dataset} has "
            f"{how_many(others, 'other feature set')}: featstore ls lists them, --spec names one"
        )
    exit_unless_whole(done)
