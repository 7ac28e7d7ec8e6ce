"""featstore import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from featstore.cli._copies import copying, exit_unless_whole, print_copied
from featstore.cli._log_options import log_options
from featstore.cli._options import (
    filled_cache_dir_option,
    json_option,
    max_size_option,
    min_free_option,
    not_empty,
    option_group,
)
from featstore.cli._words import how_many
from featstore.errors import plain
from featstore.formats.names import FEATURE_FILES
from featstore.system.filesystems import format_bytes

if TYPE_CHECKING:
    from featstore.formats.import_folder import ImportSummary

_HELP = {
    "safetensors": "Folder of .safetensors files of features and their scales.",
    "npz": "Folder of .npz files, likewise.",
    "npy": "Folder of .npy files of float features.",
    "pt": "Folder of .pt files of LongVA's first feature caches, or the folder above it.",
}


_FOLDER = click.Path(exists=True, file_okay=False)
_from_options = option_group(
    *(
        click.option(f"--from-{name}", name, type=_FOLDER, metavar="DIR", help=_HELP[name])
        for name in FEATURE_FILES
    )
)


@click.command("import")
@_from_options
@click.option("--dataset", required=True, help="Name of the dataset to fill.")
@filled_cache_dir_option
@click.option(
    "--nframe",
    type=click.IntRange(1, 65536),
    help="Number of frames of each video, which is how many parts its rows have; .pt files say it themselves.",
)
@click.option(
    "--videos-root",
    metavar="DIR",
    callback=not_empty,
    help="Folder to which the paths in .pt files are relative as ids, without suffix; it need not exist.  "
    "[default: ids are file names without suffix]",
)
@click.option(
    "--replace-newer",
    is_flag=True,
    help="Also replace records that are newer than what was exported; by default they stay.",
)
@click.option("--dry-run", is_flag=True, help="Read what the files are, and store nothing.")
@min_free_option
@max_size_option
@json_option
@log_options
def import_files(
    dataset: str,
    cache_dir: str,
    nframe: int | None,
    videos_root: str | None,
    replace_newer: bool,
    dry_run: bool,
    min_free: int,
    max_size: int | None,
    as_json: bool,
    **folders: str | None,
) -> None:
    """Store features that are in files, as they are; those that featstore exported go back to their feature set.

    All others are marked as imported: what computed them is not known, and a model takes them only if it is told to.
    """
    from featstore.formats.import_folder import import_folder
    from featstore.store.describe import write_cache_meta

    chosen = [(name, folder) for name, folder in folders.items() if folder is not None]
    if len(chosen) != 1:
        raise click.UsageError(f"name one folder with --from-{', --from-'.join(FEATURE_FILES)}")
    [(name, folder)] = chosen
    word = "read" if dry_run else "written"
    with copying(lambda summary: (summary.imported, summary.record_bytes), word) as controls:
        done = import_folder(
            folder,
            f".{name}",
            cache_dir,
            dataset,
            nframe=nframe,
            videos_root=videos_root,
            replace_newer=replace_newer,
            dry_run=dry_run,
            min_free=min_free,
            max_size=max_size,
            **controls,
        )
    if not dry_run:
        write_cache_meta(cache_dir)
    verb = "would be imported" if dry_run else "imported"
    sentence = (
        f"{dataset}: {done.imported} {verb}, {done.skipped} there before, {len(done.failures)} failed, "
        f"{format_bytes(done.record_bytes)}"
    )
    if done.newer:
        sentence += (
            f"\n  {how_many(done.newer, 'video')} left, whose records are newer than what was exported; "
            "--replace-newer replaces them"
        )
    for digest, videos in done.sets.items():
        sentence += f"\n  set {digest[:8]}: {how_many(videos, 'video')}"
    if done.unknown:
        sentence += (
            f"\n  imported, so unknown: {', '.join(done.unknown)}; a model takes such features only with "
            "accept_imported=True"
        )
    facts = _facts(done)
    print_copied(done, done.imported, plain(sentence), as_json=as_json, facts=facts, named="file")
    exit_unless_whole(done, done.full)


def _facts(done: ImportSummary) -> dict[str, Any]:
    """Return the summary in the words of `--json`."""
    facts = dict(vars(done))
    imported, sets = facts.pop("imported"), facts.pop("sets")
    return facts | {
        "planned": imported if done.dry_run else done.total - done.skipped - done.newer,
        "stored": 0 if done.dry_run else imported,
        "feature_sets": [
            {"feature_set": digest, "videos": count} for digest, count in sets.items()
        ],
    }
