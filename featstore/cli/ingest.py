"""featstore ingest."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featstore import defaults
from featstore.cli._interrupts import INTERRUPTED, stop_on_signals
from featstore.cli._options import (
    SOME_FAILED,
    VariadicOption,
    cache_dir_option,
    dtype_option,
    in_gib,
    json_option,
    max_size_option,
    min_free_option,
    model_option,
    nframe_option,
    size,
    tower_option,
    usage_errors,
)
from featstore.cli._printing import clock, print_json
from featstore.cli._progress import show_progress
from featstore.cli._sources import IngestSource, choose_sources
from featstore.cli._streams import say
from featstore.errors import plain, plain_line
from featstore.system.filesystems import format_bytes

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping

    from featstore.encoders.base import Encoder
    from featstore.encoders.registry import EncoderRecipe
    from featstore.pipeline.summary import IngestSummary


@click.command()
@click.option(
    "--videos",
    multiple=True,
    type=click.Path(),
    help="A folder of videos, whose ids are their paths in it without the suffix; or a single video, whose id is its "
    "file name without the suffix. Repeatable.",
)
@click.option(
    "--manifest",
    type=click.Path(dir_okay=False),
    help="JSONL, CSV or TSV file with the fields video_id and path, in place of --videos.",
)
@click.option(
    "--datasets",
    cls=VariadicOption,
    multiple=True,
    metavar="NAME...",
    help="Benchmarks of VLMEvalKit in place of --videos, as in Video-MME_128frame MLVU_128frame. Each fills the "
    "dataset of its own name and sets its own number of frames.",
)
@click.option(
    "--dataset",
    help="Name of the dataset to fill; created if it does not exist. Required without --datasets.",
)
@model_option
@tower_option
@cache_dir_option
@click.option(
    "--encoder",
    "encoder_name",
    type=click.Choice(["longva", "toy"]),
    default=defaults.ENCODER,
    help="Encoder that computes the features; toy needs no checkpoint and is for trying things out.",
)
@nframe_option
@click.option(
    "--sampling",
    "rule",
    default=defaults.SAMPLING,
    help="Which frames to take: linspace (as LongVA does), midpoint, vlmevalkit, or fps:R for R per second.",
)
@click.option(
    "--quantize",
    "quantization",
    type=click.Choice(["int8", "bf16", "fp16", "fp32"]),
    default=defaults.VALUES,
    help="Data type of the stored values.",
)
@click.option(
    "--scale",
    type=click.Choice(["channel", "token", "tensor"]),
    default=defaults.GRANULARITY,
    help="What one int8 scale is shared by: the values of a channel, of a token, or of the whole video.",
)
@click.option(
    "--codec",
    type=click.Choice(["raw", "lz4", "zstd"]),
    default=defaults.CODEC,
    help="Compression of new records; stored records stay as they are. raw is read without a copy.",
)
@dtype_option
@click.option(
    "--device",
    "devices",
    default=defaults.DEVICE,
    metavar="NAME[,NAME...]",
    help="Device to encode on: auto, cpu, cuda or cuda:N. Several, as in cuda:0,cuda:1, get one encoder process each.",
)
@click.option(
    "--batch-frames",
    type=click.IntRange(1),
    help="Number of frames encoded at once.  "
    f"[default: {defaults.BATCH_FRAMES_CUDA} on CUDA, {defaults.BATCH_FRAMES_CPU} on a CPU]",
)
@click.option(
    "--decode-workers",
    type=click.IntRange(1),
    default=defaults.DECODE_WORKERS,
    help="Number of decoder processes.  [default: one per core]",
)
@click.option(
    "--decode-timeout",
    type=click.FloatRange(0, min_open=True),
    default=defaults.DECODE_TIMEOUT,
    help="Maximum seconds to decode one video.",
)
@click.option(
    "--decode-memory",
    type=size,
    default=in_gib(defaults.DECODE_MEMORY),
    help="Maximum memory of a decoder process besides its frames; a video that needs more fails.",
)
@click.option(
    "--decoder",
    type=click.Choice(["auto", "av", "decord", "exact"]),
    default=defaults.DECODER,
    help="Library that reads the files. The frames of the first three are the same bytes: auto is PyAV, which is "
    "faster, for files whose frames are certain to be the same, and decord for all others; av is only PyAV, which "
    "also reads AV1; decord is only decord. exact takes the frames that a player shows, of any file that "
    "PyAV reads, which makes another feature set; decord miscounts some kinds of files.",
)
@click.option("--limit", type=click.IntRange(1), help="Maximum number of videos to ingest.")
@click.option("--retry-failed", is_flag=True, help="Try the videos that failed before again.")
@min_free_option
@max_size_option
@click.option("--dry-run", is_flag=True, help="Print the plan and exit.")
@json_option
def ingest(**options: Any) -> None:
    """Compute and store the features of videos, except those that are already stored."""
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
    source: IngestSource,
    encoder: Encoder | list[EncoderRecipe],
    stop: threading.Event,
    options: dict[str, Any],
) -> IngestSummary:
    from featstore.pipeline.ingest import ingest as run
    from featstore.pipeline.options import IngestOptions

    found = IngestOptions(
        workers=options["decode_workers"],
        decode_timeout=options["decode_timeout"],
        decode_memory=options["decode_memory"],
        decoder=options["decoder"],
        retry_failed=options["retry_failed"],
        limit=options["limit"],
        min_free=options["min_free"],
        max_size=options["max_size"],
        dry_run=options["dry_run"],
    )
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
            options=found,
            stop=stop,
            on_plan=lambda plan: say(_plan_line(plan, options["cache_dir"])),
            on_progress=on_progress,
        )


def _encoder(options: dict[str, Any]) -> Encoder | list[EncoderRecipe]:
    """Return the encoder for one device, or the recipes for several."""
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
