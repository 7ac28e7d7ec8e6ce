"""featstore ingest."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featstore.cli._interrupts import INTERRUPTED, stop_on_signals
from featstore.cli._options import (
    cache_dir_option,
    json_option,
    model_option,
    nframe_option,
    size,
    tower_option,
    usage_errors,
)
from featstore.cli._printing import clock, print_json
from featstore.cli._progress import show_progress
from featstore.cli._sources import SeveralDatasets, Source, choose_sources
from featstore.cli._streams import say
from featstore.errors import plain, plain_line
from featstore.system.filesystems import format_bytes

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping

    from featstore.encoders.base import Encoder
    from featstore.encoders.registry import EncoderRecipe
    from featstore.pipeline.summary import IngestSummary

SOME_FAILED = 3


@click.command(cls=SeveralDatasets)
@click.option(
    "--videos",
    multiple=True,
    type=click.Path(),
    help="A folder of videos, whose ids are their paths in it without the suffix; or a video, whose id is its name "
    "without the suffix. Repeatable.",
)
@click.option(
    "--manifest",
    type=click.Path(dir_okay=False),
    help="JSONL, CSV or TSV with video_id and path, in place of --videos.",
)
@click.option(
    "--datasets",
    multiple=True,
    metavar="NAME...",
    help="Benchmarks of VLMEvalKit in place of --videos, as Video-MME_128frame MLVU_128frame; "
    "each fills the dataset called like it and says itself how many frames.",
)
@click.option(
    "--dataset",
    help="The dataset to fill; made if it is not there. Required unless --datasets is given.",
)
@model_option
@tower_option
@cache_dir_option
@click.option(
    "--encoder",
    "encoder_name",
    type=click.Choice(["longva", "toy"]),
    default="longva",
    show_default=True,
    help="What makes the features; toy needs no checkpoint and is for trying things out.",
)
@nframe_option
@click.option(
    "--sampling",
    "rule",
    default="linspace",
    show_default=True,
    help="Which frames: linspace (as LongVA), midpoint, vlmevalkit, or fps:R for R a second.",
)
@click.option(
    "--quantize",
    "quantization",
    type=click.Choice(["int8", "bf16", "fp16", "fp32"]),
    default="int8",
    show_default=True,
    help="How values are stored.",
)
@click.option(
    "--scale",
    type=click.Choice(["channel", "token", "tensor"]),
    default="channel",
    show_default=True,
    help="What one int8 scale serves.",
)
@click.option(
    "--codec",
    type=click.Choice(["raw", "lz4", "zstd"]),
    default="raw",
    show_default=True,
    help="How new records are compressed; stored ones stay as they are. raw is read without a copy.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "fp16", "bf16", "fp32"]),
    default="auto",
    show_default=True,
    help="What the encoder computes in; auto is fp16 on CUDA, fp32 on a CPU.",
)
@click.option(
    "--device",
    "devices",
    default="auto",
    show_default=True,
    metavar="NAME[,NAME...]",
    help="auto, cpu, cuda or cuda:N. Of several, as cuda:0,cuda:1, each gets a process that encodes.",
)
@click.option(
    "--batch-frames",
    type=click.IntRange(1),
    help="Frames encoded at once.  [default: 128 on CUDA, 16 on a CPU]",
)
@click.option(
    "--decode-workers", type=click.IntRange(1), help="Decode processes.  [default: one a core]"
)
@click.option(
    "--decode-timeout",
    type=click.FloatRange(0, min_open=True),
    default=600.0,
    show_default=True,
    help="Seconds a video may take to decode.",
)
@click.option(
    "--decode-memory",
    type=size,
    default="4GiB",
    show_default=True,
    help="Memory a decode process may take beside its frames; a video that asks for more fails.",
)
@click.option(
    "--decoder",
    type=click.Choice(["auto", "av", "decord"]),
    default="auto",
    show_default=True,
    help="What reads the files; the frames are the same bytes. auto is PyAV, which is faster, where that is "
    "certain, and decord for the rest; av is PyAV alone, which reads AV1 too; decord is decord alone.",
)
@click.option("--limit", type=click.IntRange(1), help="Ingest so many videos at most.")
@click.option("--retry-failed", is_flag=True, help="Try again the videos that failed before.")
@click.option(
    "--min-free",
    type=size,
    default="1GiB",
    show_default=True,
    help="Bytes to leave free on the disk.",
)
@click.option("--max-size", type=size, help="Bytes the cache directory may take.")
@click.option("--dry-run", is_flag=True, help="Print the plan and end.")
@json_option
def ingest(**options: Any) -> None:
    """Store the features of videos, leaving out those that are stored."""
    sources = choose_sources(options)
    encoder = _encoder(options)
    summaries: list[IngestSummary] = []
    with stop_on_signals() as stop:
        for source in sources:
            summaries.append(_ingest(source, encoder, stop, options))
            if not options["as_json"]:
                _print_summary(summaries[-1])
            if summaries[-1].full or stop.is_set():
                break
    if options["as_json"]:
        found = [summary.to_dict() for summary in summaries]
        print_json(found if options["datasets"] else found[0])
    if summaries[-1].full:
        click.echo(f"featstore: {plain(summaries[-1].full)}", err=True)
        sys.exit(1)
    if stop.is_set():
        sys.exit(INTERRUPTED)
    if any(summary.failures or summary.failed_before for summary in summaries):
        sys.exit(SOME_FAILED)


def _ingest(
    source: Source,
    encoder: Encoder | list[EncoderRecipe],
    stop: threading.Event,
    options: dict[str, Any],
) -> IngestSummary:
    from featstore.pipeline.ingest import ingest as run

    with show_progress() as on_progress:
        return run(
            source.videos,
            options["cache_dir"],
            source.dataset,
            encoder=encoder,
            sampling=source.sampling,
            quantization=options["quantization"],
            scale=options["scale"],
            codec=options["codec"],
            workers=options["decode_workers"],
            decode_timeout=options["decode_timeout"],
            decode_memory=options["decode_memory"],
            decoder=options["decoder"],
            retry_failed=options["retry_failed"],
            limit=options["limit"],
            min_free=options["min_free"],
            max_size=options["max_size"],
            dry_run=options["dry_run"],
            stop=stop,
            on_plan=lambda plan: say(_plan_line(plan, options["cache_dir"])),
            on_progress=on_progress,
        )


def _encoder(options: dict[str, Any]) -> Encoder | list[EncoderRecipe]:
    """Return the encoder of one device, or the recipes of several."""
    devices = [name.strip() for name in options["devices"].split(",")]
    if len(devices) > 1 and not all(re.fullmatch(r"cpu|cuda(:[0-9]+)?", name) for name in devices):
        found = options["devices"]
        raise click.BadParameter(
            f"{found!r} does not name devices; write cuda:0,cuda:1", param_hint="--device"
        )
    recipes = [_recipe(options, device) for device in devices]
    with usage_errors():
        return recipes[0].build() if len(recipes) == 1 else recipes


def _recipe(options: dict[str, Any], device: str) -> EncoderRecipe:
    from featstore.encoders.registry import EncoderRecipe

    if options["encoder_name"] == "toy":
        return EncoderRecipe("toy", batch_frames=options["batch_frames"])
    if not options["model_path"]:
        raise click.UsageError("name the checkpoint with --model-path")
    words = {
        "checkpoint": options["model_path"],
        "vision_tower": options["vision_tower"],
        "device": device,
        "dtype": None if options["dtype"] == "auto" else options["dtype"],
    }
    return EncoderRecipe("longva", words, options["batch_frames"])


def _plan_line(plan: IngestSummary, cache_dir: str) -> str:
    from featstore.system.filesystems import free_bytes

    there = Path(cache_dir).absolute()
    while not there.exists():
        there = there.parent
    parts = [f"{plan.planned} videos to ingest", f"{plan.skipped} stored already"]
    if plan.replaced:
        parts.append(f"{plan.replaced} replaced since")
    if plan.failed_before:
        parts.append(f"{len(plan.failed_before)} failed before (try again: --retry-failed)")
    need = f"{format_bytes(plan.needed_bytes)} needed, {format_bytes(free_bytes(there))} free"
    return f"{plan.dataset}: {', '.join(parts)}; {need}"


def _shares(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def _print_summary(summary: IngestSummary) -> None:
    click.echo(
        f"{summary.dataset}: {summary.stored} stored, {summary.skipped} skipped, {len(summary.failures)} failed, "
        f"{format_bytes(summary.record_bytes)} in {clock(summary.seconds)}"
    )
    click.echo(f"  {plain_line(summary.spec.describe())}")
    if summary.stored:
        shares = summary.shares
        worst = summary.bottleneck
        others = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if name != worst)
        click.echo("  decoded by: " + _shares(summary.decoders))
        click.echo(f"  bottleneck: {worst} ({shares[worst]:.0%} busy); {others}")
    for failure in summary.failures:
        click.echo(f"  failed: {plain_line(f'{failure.video_id}: {failure.reason}')}")
    for failure in summary.failed_before:
        click.echo(f"  failed before: {plain_line(f'{failure.video_id}: {failure.reason}')}")
