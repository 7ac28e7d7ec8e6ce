"""featstore ls."""

from __future__ import annotations

from typing import Any

import click

from featstore.cli._options import cache_dir_option, json_option, spec_option
from featstore.cli._printing import date, print_table


@click.command()
@cache_dir_option
@click.option("--dataset", help="List this dataset's videos.")
@click.option("--failed", is_flag=True, help="List the dataset's failed videos and their reasons.")
@spec_option
@json_option
def ls(cache_dir: str, dataset: str | None, failed: bool, spec: str | None, as_json: bool) -> None:
    """List the datasets, or the videos of one dataset."""
    from featstore.store.describe import describe_store
    from featstore.store.reader import FeatureStore

    if dataset is None and (failed or spec):
        option = "--failed" if failed else "--spec"
        raise click.UsageError(
            f"{option} selects videos of a dataset: name the dataset with --dataset"
        )
    store = FeatureStore(cache_dir)
    if dataset is None:
        found = [_dataset_row(row) for row in describe_store(cache_dir)["datasets"].values()]
        print_table(found, as_json)
        return
    chosen = store[dataset].select(spec=spec).spec if spec else None
    if failed:
        rows: list[dict[str, Any]] = [
            {
                "video_id": row.video_id,
                "set": row.spec[:8],
                "reason": row.reason,
                "path": row.video_path,
            }
            for row in store[dataset].failures(chosen)
        ]
    else:
        rows = [
            {
                "video_id": entry.video_id,
                "set": entry.spec[:8],
                "frames": entry.frames,
                "tokens": entry.shape[0],
                "dim": entry.shape[1],
                "bytes": entry.record_bytes,
                "codec": entry.codec,
                "relative_l2": round(entry.error.relative_l2, 6),
                "created": date(entry.created),
            }
            for entry in store[dataset].entries(chosen)
        ]
    print_table(sorted(rows, key=lambda row: (row["video_id"], row["set"])), as_json)


def _dataset_row(row: dict[str, Any]) -> dict[str, Any]:
    if "error" in row:
        return {
            "dataset": row["dataset"],
            "videos": "?",
            "failures": "?",
            "bytes": "?",
            "sets": row["error"],
        }
    sets = ", ".join(found["digest"][:8] for found in row["feature_sets"])
    return {
        "dataset": row["dataset"],
        "videos": row["videos"],
        "failures": row["failures"],
        "bytes": row["record_bytes"],
        "sets": sets,
    }
