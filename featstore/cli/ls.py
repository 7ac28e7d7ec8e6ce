"""featstore ls."""

from __future__ import annotations

import json
from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import click

from featstore.cli._options import (
    cache_dir_option,
    json_option,
    open_set,
    spec_option,
    which_nframe_option,
)
from featstore.cli._printing import date, print_json_rows, print_table
from featstore.cli._streams import say
from featstore.cli._words import counts_text, how_many
from featstore.errors import plain_line
from featstore.system.filesystems import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from featstore.store.dataset import Dataset
    from featstore.store.rows import Entry, Failure

_SET_FACTS = (
    "feature_set", "default", "videos", "failures", "frames", "record_bytes", "storage", "storages", "imported"
)  # fmt: skip
_SETS = ("dataset", "feature_set", "default", "videos", "failures", "record_bytes", "storage")
# Columns of the table of videos, and the fields of an entry that are in them, which fit a terminal of 80 characters.
_VIDEOS = ("video_id", "frames", "record_bytes", "token_p99", "decoder", "doubt")
_HEADS = {"record_bytes": "size"}  # for people
_STORAGE = ("values", "granularity", "codec")
_SHOWN_DIGITS = 8


@click.command()
@cache_dir_option
@click.option("--dataset", help="List this dataset's videos, those of its default feature set.")
@click.option("--failed", is_flag=True, help="List the dataset's failed videos and their reasons.")
@which_nframe_option
@spec_option
@json_option
def ls(
    cache_dir: str,
    dataset: str | None,
    failed: bool,
    nframe: int | None,
    spec: str | None,
    as_json: bool,
) -> None:
    """List the feature sets of all datasets, or the videos of one; with --json these in no particular order."""
    if dataset is None:
        if failed or spec or nframe:
            option = "--failed" if failed else "--spec" if spec else "--nframe"
            raise click.UsageError(
                f"{option} selects videos of a dataset: name the dataset with --dataset"
            )
        _list_sets(cache_dir, as_json)
        return
    there = open_set(cache_dir, dataset, spec, nframe)
    (_list_failures if failed else _list_videos)(there, as_json)
    others = len(there.sets) - 1
    if spec is None and nframe is None and others > 0:
        sets = "1 other feature set" if others == 1 else f"{others} other feature sets"
        say(f"{dataset} has {sets}: list them without --dataset, name one with --spec")


def _list_sets(cache_dir: str, as_json: bool) -> None:
    from featstore.store.describe import describe_store

    described = list(describe_store(cache_dir, storages=True)["datasets"].values())
    facts = [row for found in described for row in _set_facts(found)]
    if as_json:
        print_json_rows(map(json.dumps, facts))
        return
    readable = [row for row in facts if "problems" not in row]
    formats: dict[str, Callable[[Any], str]] = {
        "size": format_bytes,
        "feature_set": lambda digest: (digest or "")[:_SHOWN_DIGITS],
        "default": lambda is_default: "yes" if is_default else "",
    }
    rows = [row | {"storage": _kept_as(row)} for row in readable]
    print_table(_heads(_SETS), [tuple(row[name] for name in _SETS) for row in rows], formats)
    for row in readable:
        if row["imported"]:
            digest = row["feature_set"][:_SHOWN_DIGITS]
            click.echo(f"{row['dataset']}: set {digest} was imported, see featstore info")
    for row in facts:
        for problem in row.get("problems", ()):
            click.echo(f"{row['dataset']}: {plain_line(problem)}")


def _kept_as(row: dict[str, Any]) -> str:
    """Return how the records of a set are stored, and how many if that is not one way."""
    from featstore.records.storage import storage_text

    storages = row["storages"]
    if len(storages) > 1:
        return counts_text(storages)
    asked = row["storage"]
    return next(iter(storages), "") or (storage_text(**asked) if asked else "")


def _set_facts(described: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each feature set of a dataset, and one for a dataset without any; or its error."""
    dataset = described["dataset"]
    if "problems" in described:
        return [described]
    if not described["feature_sets"]:
        none = {"dataset": dataset, "feature_set": None, "default": False}
        counts = dict.fromkeys(("videos", "failures", "frames", "record_bytes"), 0)
        return [{**none, **counts, "storage": None, "storages": {}, "imported": False}]
    return [
        {
            "dataset": dataset,
            **{name: found[name] for name in _SET_FACTS},
        }
        for found in described["feature_sets"]
    ]


def _list_videos(there: Dataset, as_json: bool) -> None:
    from featstore.formats.facts import entries_json
    from featstore.store.rows import Entry

    if as_json:
        print_json_rows(entries_json(there.name, there.entries()))
        return
    # Of a million videos only what is printed is held, and no Python runs for each of its values.
    start = Entry._fields.index("values")
    places = *map(Entry._fields.index, _VIDEOS), slice(start, start + len(_STORAGE))
    feature_set, lossless = there.feature_set, 0

    def counted() -> Iterator[Entry]:
        nonlocal lossless
        for entry in there.entries():
            lossless += feature_set.is_lossless(entry)
            yield entry

    found = sorted(map(itemgetter(*places), counted()), key=itemgetter(0))
    formats: dict[str, Callable[[Any], str]] = {
        "size": lru_cache(format_bytes),
        "storage": _storage_of,
    }
    print_table((*_heads(_VIDEOS), "storage"), found, formats)
    if lossless:
        videos = f"{lossless} of {how_many(len(found), 'video')}"
        asked = feature_set.storage
        say(
            f"{videos} are stored losslessly, not as {asked}: they missed the error budget or came so from elsewhere"
        )


def _list_failures(there: Dataset, as_json: bool) -> None:
    from featstore.formats.facts import failure_facts

    if as_json:
        print_json_rows(json.dumps(failure_facts(there.name, row)) for row in there.failures())
        return
    rows = sorted((row.video_id, row.created, _full_reason(row)) for row in there.failures())
    print_table(("video_id", "created", "reason"), rows, {"created": date})
    if not rows:
        say(f"no video of {there.name} failed in this feature set")


def _heads(fields: tuple[str, ...]) -> list[str]:
    return [_HEADS.get(field, field) for field in fields]


@lru_cache
def _storage_of(fields: tuple[str, ...]) -> str:
    from featstore.records.storage import storage_text

    return storage_text(*fields)


def _full_reason(row: Failure) -> str:
    """Return why a video failed, which begins with its file."""
    named = row.reason.startswith(row.video_path)
    return row.reason if named else f"{row.video_path}: {row.reason}"
