"""featstore ls."""

from __future__ import annotations

import json
import sys
from functools import lru_cache
from itertools import chain, islice
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any

import click

from featstore.cli._completion import complete_dataset, complete_video
from featstore.cli._options import (
    SOME_FAILED,
    cache_dir_option,
    json_option,
    open_set,
    spec_option,
    which_nframe_option,
)
from featstore.cli._patterns import fits
from featstore.cli._printing import date, print_csv, print_json_rows, print_table
from featstore.cli._streams import say
from featstore.cli._words import counts_text, how_many
from featstore.errors import StoreDamaged, command_line, plain_line
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
_SORTED_BY = {"bytes": "record_bytes", "error": "token_p99", "created": "created"}
_STORAGE = ("values", "granularity", "codec")
_SHOWN_DIGITS = 8


@click.command()
@cache_dir_option
@click.option(
    "--dataset",
    shell_complete=complete_dataset,
    help="List this dataset's videos, those of its default feature set.",
)
@click.option("--failed", is_flag=True, help="List the dataset's failed videos and their reasons.")
@click.option(
    "--video",
    "patterns",
    multiple=True,
    metavar="ID",
    shell_complete=complete_video,
    help="List only this video, or those that a pattern of ids with * and ? fits. Repeatable.",
)
@click.option(
    "--sort",
    type=click.Choice(["id", *_SORTED_BY]),
    help="Order of the videos: by id, or first the largest, those with the largest error (token_p99) or the newest.  "
    "[default: id]",
)
@which_nframe_option
@spec_option
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, with all that is known of a row.")
def ls(
    cache_dir: str,
    dataset: str | None,
    failed: bool,
    patterns: tuple[str, ...],
    sort: str | None,
    nframe: int | None,
    spec: str | None,
    as_json: bool,
    as_csv: bool,
) -> None:
    """List the feature sets of all datasets, or the videos of one.

    With --json and without --sort videos are in no particular order.
    """
    if as_json and as_csv:
        raise click.UsageError("--json and --csv each say what is printed: leave one out")
    if dataset is None:
        given = {"failed": failed, "spec": spec, "nframe": nframe, "video": patterns, "sort": sort}
        if option := next((name for name, value in given.items() if value), ""):
            raise click.UsageError(
                f"--{option} selects videos of a dataset: name the dataset with --dataset"
            )
        _list_sets(cache_dir, as_json, as_csv)
        return
    if failed and sort in ("bytes", "error"):
        raise click.UsageError(f"videos that failed have no {sort}: leave out --sort")
    there, problems, none_fits = open_set(cache_dir, dataset, spec, nframe), list[str](), False
    rows = _rows(there, "failures" if failed else "catalog", problems)
    if patterns:
        rows = filter(lambda row: fits(row.video_id, patterns), rows)
        rows, none_fits = chain(first := [*islice(rows, 1)], rows), not (first or failed)
    if sort or not as_json:
        rows = iter(_sorted(rows, sort))
    (_list_failures if failed else _list_videos)(there, rows, as_json, as_csv)
    others = len(there.sets) - 1
    if spec is None and nframe is None and others > 0:
        sets = how_many(others, "other feature set")
        say(f"{dataset} has {sets}: list them without --dataset, name one with --spec")
    if problems:
        for problem in problems:
            say(f"featstore: not listed: {plain_line(problem)}")
        check = command_line("check", cache_dir=cache_dir, dataset=dataset)
        say(f"featstore: {dataset} has rows that cannot be read; {check} says what is lost")
        sys.exit(1)
    if none_fits:
        say(f"featstore: no video of {dataset} fits {plain_line(' or '.join(patterns))}")
        sys.exit(SOME_FAILED)


def _rows(there: Dataset, table: str, problems: list[str]) -> Iterator[Any]:
    """Yield the rows of the videos, or of those that failed; of damaged ones those that can be read.

    Args:
        there: the feature set.
        table: `catalog` or `failures`.
        problems: what is wrong with the others is added to these.
    """
    count = 0
    try:
        for row in there.failures() if table == "failures" else there.entries():
            count += 1
            yield row
    except StoreDamaged:
        from featstore.store.catalog import salvage_rows

        digest = there.feature_set.spec.digest
        readable, wrong = salvage_rows(there.snapshot(), table, digest)
        problems += wrong
        yield from readable[count:]  # both are in the order of the keys


def _sorted(rows: Iterator[Any], by: str | None) -> list[Any]:
    found = sorted(rows, key=attrgetter("video_id"))
    if by in _SORTED_BY:
        found.sort(key=attrgetter(_SORTED_BY[by]), reverse=True)
    return found


def _list_sets(cache_dir: str, as_json: bool, as_csv: bool) -> None:
    from featstore.store.describe import describe_store
    from featstore.store.lost import refuse_no_cache

    refuse_no_cache(cache_dir)
    described = list(describe_store(cache_dir, storages=True)["datasets"].values())
    facts = [row for found in described for row in _set_facts(found)]
    if as_json:
        print_json_rows(map(json.dumps, facts))
        return
    if as_csv:
        print_csv(map(_flat, facts))
        return
    readable = [row for row in facts if "problems" not in row]
    formats: dict[str, Callable[[Any], str]] = {
        "size": format_bytes,
        "feature_set": lambda digest: (digest or "")[:_SHOWN_DIGITS],
        "default": lambda is_default: "yes" if is_default else "",
    }
    rows = [row | {"storage": _kept_as(row)} for row in readable]
    print_table(_heads(_SETS), [tuple(row[name] for name in _SETS) for row in rows], formats)
    if len(readable) > 1:
        size = format_bytes(sum(row["record_bytes"] for row in readable))
        records = how_many(sum(row["videos"] for row in readable), "record")
        say(f"{how_many(len({row['dataset'] for row in readable}), 'dataset')}, {records}, {size}")
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


def _list_videos(there: Dataset, rows: Iterator[Entry], as_json: bool, as_csv: bool) -> None:
    from featstore.formats.facts import IMPORTED, entries_json
    from featstore.store.rows import Entry

    # Of imported features nobody knows from which file they are, nor how exact.
    first, end = Entry._fields.index("size"), Entry._fields.index("created")

    def known(row: Entry) -> tuple[Any, ...]:
        unknown = (None,) * (end - first)
        return row if row.doubt != IMPORTED else (*row[:first], *unknown, *row[end:])

    if as_json:
        print_json_rows(entries_json(there.name, rows))
        return
    if as_csv:
        names = ("dataset", "feature_set", *Entry._fields[1:])
        print_csv(dict(zip(names, (there.name, *known(row)), strict=True)) for row in rows)
        return
    # Of a million videos no Python runs for each of the values.
    start = Entry._fields.index("values")
    places = *map(Entry._fields.index, _VIDEOS), slice(start, start + len(_STORAGE))
    feature_set, lossless, size = there.feature_set, 0, 0

    def counted() -> Iterator[tuple[Any, ...]]:
        nonlocal lossless, size
        for entry in rows:
            lossless += feature_set.is_lossless(entry)
            size += entry.record_bytes
            yield known(entry)

    found = [*map(itemgetter(*places), counted())]
    formats: dict[str, Callable[[Any], str]] = {
        "size": lru_cache(format_bytes),
        "storage": _storage_of,
    }
    if any(row[_VIDEOS.index("token_p99")] is None for row in found):
        formats["token_p99"] = lambda error: "unknown" if error is None else f"{error:.6f}"
    print_table((*_heads(_VIDEOS), "storage"), found, formats)
    say(f"{how_many(len(found), 'video')}, {format_bytes(size)}")
    if lossless:
        videos = f"{lossless} of {how_many(len(found), 'video')}"
        asked = feature_set.storage
        say(
            f"{videos} are stored losslessly, not as {asked}: they missed the error budget or came so from elsewhere"
        )


def _list_failures(there: Dataset, rows: Iterator[Failure], as_json: bool, as_csv: bool) -> None:
    from featstore.formats.facts import failure_facts

    facts = (failure_facts(there.name, row) for row in rows)
    if as_json:
        print_json_rows(map(json.dumps, facts))
    elif as_csv:
        print_csv(facts)
    else:
        found = [(row.video_id, row.created, _full_reason(row)) for row in rows]
        print_table(("video_id", "created", "reason"), found, {"created": date})
        none = f"no video of {there.name} failed in this feature set"
        say(how_many(len(found), "failure") if found else none)


def _flat(facts: dict[str, Any]) -> dict[str, Any]:
    """Return facts without values that are mappings: what is in these instead."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat


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
