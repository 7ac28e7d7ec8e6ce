"""featstore info."""

from __future__ import annotations

from typing import Any

import click

from featstore.cli._options import cache_dir_option, json_option, one_dataset_option
from featstore.cli._printing import date, print_facts, print_json
from featstore.errors import plain_line
from featstore.system.filesystems import format_bytes


@click.command()
@cache_dir_option
@one_dataset_option
@json_option
def info(cache_dir: str, dataset: str | None, as_json: bool) -> None:
    """Show the manifest, counts, sizes, feature sets and quantization errors."""
    from featstore.store.describe import describe_store
    from featstore.store.reader import FeatureStore

    described = describe_store(cache_dir)["datasets"]
    if dataset is not None:
        FeatureStore(cache_dir)[dataset]  # raises DatasetNotFound
        described = {dataset: described[dataset]}
    if as_json:
        print_json(described)
        return
    for row in described.values():
        _print_dataset(row)


def _print_dataset(row: dict[str, Any]) -> None:
    if "error" in row:
        click.echo(f"{row['dataset']}: {plain_line(row['error'])}")
        return
    click.echo(
        f"{row['dataset']}: {row['videos']} videos, {format_bytes(row['record_bytes'])} of records in a file of "
        f"{format_bytes(row['file_bytes'])}, {row['failures']} failures, format {row['format']}, {row['engine']}, "
        f"made {date(row['created'])}{', sealed' if row['sealed'] else ''}"
    )
    for found in row["feature_sets"]:
        spec, encoder = found["spec"], found["spec"]["encoder"]
        click.echo(f"  set {found['digest']}: {found['videos']} videos, {found['frames']} frames")
        facts = {
            "from": found["origin"],
            "model_signature": found["model_signature"],
            "encoder": f"{encoder['name']}, weights {encoder['weights'][:16]}, {encoder['dtype']}",
            "tower": f"{encoder['vision_tower']}, layer {encoder['select_layer']}, {encoder['select_feature']}",
            "projector": f"{encoder['projector']}, pooling {encoder['pooling']}",
            "features": f"{encoder['tokens_per_frame']} tokens a frame of {encoder['hidden_dim']}",
            "sampling": _sampling_text(spec["sampling"]),
            "decoder": spec["decoder"],
            "stored": f"{spec['quantization']}, scale {spec['scale']}",
        }
        error = found["error"]
        if found["videos"]:
            facts["error"] = (
                f"relative L2 {error['relative_l2_mean']:.2e} on average, {error['relative_l2_max']:.2e} at most; "
                f"cosine {error['cosine_min']:.6f} at least; largest {error['max_abs']:.3g}"
            )
        print_facts(facts, indent="    ")


def _sampling_text(sampling: dict[str, Any]) -> str:
    rule = f"fps:{sampling['rate']:g}" if sampling["rate"] else sampling["policy"]
    return f"{sampling['nframe']} frames, {rule}"
