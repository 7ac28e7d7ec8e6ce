"""featstore info."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from featstore.cli._options import cache_dir_option, json_option, one_dataset_option
from featstore.cli._printing import date, print_facts, print_json
from featstore.cli._words import (
    counts_text,
    errors_text,
    geometry_text,
    how_many,
    how_many_stored,
    preprocessing_text,
    sampling_text,
)
from featstore.errors import plain_line
from featstore.system.filesystems import format_bytes


@click.command()
@cache_dir_option
@one_dataset_option
@json_option
def info(cache_dir: str, dataset: str | None, as_json: bool) -> None:
    """Show the manifest, counts, sizes, feature sets, decoders, doubts and quantization errors."""
    from featstore.store.describe import describe_dataset, describe_store
    from featstore.store.lost import refuse_no_cache
    from featstore.store.reader import FeatureStore

    if dataset is None:
        refuse_no_cache(cache_dir)
        described = describe_store(cache_dir, rows=True)["datasets"]
    else:
        FeatureStore(cache_dir)[dataset]  # raises DatasetNotFound, which names those there are
        described = {dataset: describe_dataset(cache_dir, dataset)}
    if as_json:
        print_json(described)
        return
    for row in described.values():
        _print_dataset(row)


def _print_dataset(row: dict[str, Any]) -> None:
    if "problems" in row:
        for problem in row["problems"]:
            click.echo(f"{row['dataset']}: {plain_line(problem)}")
        return
    videos = how_many_stored(row["videos"], len(row["feature_sets"]))
    failures = how_many(row["failures"], "failure")
    click.echo(
        f"{row['dataset']}: {videos}, {format_bytes(row['record_bytes'])} of records in a file of "
        f"{format_bytes(row['file_bytes'])}, {failures}, format {row['format']}, {row['engine']}, "
        f"made {_date(row['created'])}{', sealed' if row['sealed'] else ''}"
    )
    for found in row["feature_sets"]:
        _print_set(found)


def _print_set(found: dict[str, Any]) -> None:
    from featstore.records.budget import percent
    from featstore.records.storage import storage_text
    from featstore.spec import UNKNOWN_PARTS, FeatureSpec

    spec = FeatureSpec.from_dict(found["spec"])
    encoder, plain = spec.encoder, found["spec"]
    click.echo(
        f"  set {spec.digest}{', the default' if found['default'] else ''}: "
        f"{how_many(found['videos'], 'video')}, {how_many(found['frames'], 'frame')}, "
        f"{format_bytes(found['record_bytes'])}, {how_many(found['failures'], 'failure')}"
    )
    budget, stored_as = found["max_error"], storage_text(**found["storage"])
    otherwise = found["stored_otherwise"]
    still = f"; {how_many(otherwise, 'video')} still otherwise" if otherwise else ""
    if found["lossless"]:
        kept = how_many(found["lossless"], "video")
        still += f"; {kept} losslessly, which missed the error budget or came so from elsewhere"
    facts = {
        "from": found["origin"],
        "imported": f"{', '.join(UNKNOWN_PARTS)} unknown" if spec.imported else "",
        **found["names"],
        "encoder": ""
        if spec.imported
        else f"{encoder.family}, weights {encoder.weights[:16]}, {encoder.dtype}",
        "settings": ", ".join(f"{name} {value}" for name, value in encoder.settings.items()),
        "features": geometry_text(plain["encoder"]["geometry"], spec.max_rows),
        "sampling": sampling_text(plain["sampling"]),
        "preprocessing": preprocessing_text(plain["preprocessing"]),
        "frames as": _frames(spec.decoder),
        "decoded by": counts_text(found["decoders"]),
        "doubts": counts_text(found["doubts"]),
        "stored": stored_as + still,
        "stored as": counts_text(found["storages"]) if {*found["storages"]} - {stored_as} else "",
        "error budget": ""
        if budget is None
        else f"99 of 100 tokens of a video within {percent(budget)}",
        "error": _error(found) if found["videos"] and not spec.imported else "",
    }
    print_facts(facts, indent="    ")


def _frames(decoder: str) -> str:
    """Return whose frames they are, of a decoder's identity in a spec: several read the same ones."""
    from featstore.decoding.video_file import identity_of

    exact, one = identity_of("exact"), identity_of("auto")
    known = {one: "of decord and, by the byte, of pyav", exact: "that a player shows"}
    return f"{decoder}: those {known[decoder]}" if decoder in known else decoder


def _date(created: str | None) -> str:
    """Return a time of JSON for people."""
    return date(datetime.fromisoformat(created).timestamp()) if created else "unknown"


def _error(found: dict[str, Any]) -> str:
    exact = found["errors"]["relative_l2_max"] == found["errors"]["max_abs"] == 0
    return "none: all values are the encoder's" if exact else errors_text(found["errors"])
