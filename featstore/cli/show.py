"""featstore get, ls, info and shape: what is stored, and what would be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from featstore.cli._options import (
    cache_dir_option,
    json_option,
    model_option,
    nframe_option,
    spec_option,
    tower_option,
)
from featstore.cli._printing import date, print_facts, print_json, print_table
from featstore.cli._streams import say
from featstore.errors import FeatstoreError, plain_line
from featstore.system.filesystems import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable


@click.command("get")
@cache_dir_option
@click.option("--dataset", required=True, help="The dataset.")
@click.option("--nframe", type=int, help="Frames a video, where feature sets differ in it.")
@spec_option
@click.option(
    "--out",
    type=click.Path(dir_okay=False),
    help="Write to FILE.safetensors (as stored) or FILE.npy (float32).",
)
@json_option
@click.argument("video_id")
def get_features(
    cache_dir: str,
    dataset: str,
    nframe: int | None,
    spec: str | None,
    out: str | None,
    as_json: bool,
    video_id: str,
) -> None:
    """Show what is stored of a video, or write it to a file."""
    from featstore.formats.export import save_features
    from featstore.store.reader import get

    features = get(cache_dir, dataset, video_id, nframe=nframe, spec=spec)
    if out:
        try:
            save_features(features, out)
        except ValueError as exc:
            raise click.BadParameter(str(exc), param_hint="--out") from exc
        except OSError as exc:
            raise FeatstoreError(
                f"{out} cannot be written: {exc.strerror}; choose another --out"
            ) from exc
    header = features.header
    facts = {
        "video_id": header.video_id,
        "dataset": header.dataset,
        "video_path": header.video_path,
        "shape": list(header.shape),
        "tokens_per_frame": header.tokens_per_frame,
        "frames": header.frames,
        "total_frames": header.total_frames,
        "fps": header.fps,
        "stored_as": header.quantization,
        "scale": header.scale,
        "codec": header.codec,
        "encoder_dtype": header.dtype,
        "model_signature": header.model_signature,
        "feature_set": header.spec,
        "source": dict(zip(("size", "mtime_ns", "xxh3_128"), header.source.to_list(), strict=True)),
        "error": header.error.to_dict(),
        "created": header.created,
    }
    if as_json:
        print_json(facts)
        return
    facts["frames"] = _ellipsis(header.frames)
    facts["created"] = date(header.created)
    facts["error"] = _error_text(
        header.error.cosine, header.error.relative_l2, header.error.max_abs
    )
    facts["source"] = f"{format_bytes(header.source.size)}, xxh3-128 {header.source.xxh3_128}"
    print_facts(facts)
    if out:
        say(f"written to {plain_line(out)}")


@click.command("ls")
@cache_dir_option
@click.option("--dataset", help="List this dataset's videos.")
@click.option("--failed", is_flag=True, help="List its failed videos, with their reasons.")
@spec_option
@json_option
def list_store(
    cache_dir: str, dataset: str | None, failed: bool, spec: str | None, as_json: bool
) -> None:
    """List datasets, or one dataset's videos."""
    from featstore.store.describe import describe_store
    from featstore.store.reader import FeatureStore

    if dataset is None and (failed or spec):
        option = "--failed" if failed else "--spec"
        raise click.UsageError(
            f"{option} is of a dataset's videos: name the dataset with --dataset"
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


@click.command()
@cache_dir_option
@click.option("--dataset", help="This dataset alone.")
@json_option
def info(cache_dir: str, dataset: str | None, as_json: bool) -> None:
    """Show manifest, counts, bytes, feature sets and quantisation error."""
    from featstore.store.describe import describe_store
    from featstore.store.reader import FeatureStore

    described = describe_store(cache_dir)["datasets"]
    if dataset is not None:
        FeatureStore(cache_dir)[dataset]  # refuses a name that is not there
        described = {dataset: described[dataset]}
    if as_json:
        print_json(described)
        return
    for row in described.values():
        _print_dataset(row)


@click.command()
@model_option
@tower_option
@nframe_option
@json_option
def shape(model_path: str | None, vision_tower: str | None, nframe: int, as_json: bool) -> None:
    """Show what a checkpoint's features measure and take, without reading a weight."""
    from featstore.encoders.longva.shape import feature_shape

    if not model_path:
        raise click.UsageError("name the checkpoint with --model-path")
    found = feature_shape(model_path, nframe, vision_tower=vision_tower)
    if as_json:
        print_json(found.to_dict())
        return
    print_facts(
        {
            "frames": found.frames,
            "tokens a frame": found.tokens_per_frame,
            "tokens a video": found.num_tokens,
            "hidden size": found.hidden_dim,
        }
    )
    click.echo("bytes a video:")
    rows = [
        {"stored as": name, "bytes": size, "": format_bytes(size)}
        for name, size in found.stored_bytes().items()
    ]
    print_table(rows, as_json=False)


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


def _error_text(cosine: float, relative_l2: float, max_abs: float) -> str:
    return f"cosine {cosine:.6f}, relative L2 {relative_l2:.2e}, largest {max_abs:.3g}"


def _ellipsis(frames: Iterable[int], keep: int = 8) -> str:
    shown = [str(frame) for frame in frames]
    return ", ".join(shown if len(shown) <= keep + 1 else [*shown[:keep], "...", shown[-1]])
