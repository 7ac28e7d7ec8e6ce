"""The options of `featstore ingest`, and what they mean together: an encoder, a storage, how the work is done."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from featstore import defaults
from featstore.cli._completion import complete_dataset
from featstore.cli._encoder_options import ENCODER_OPTIONS, encoder_recipe
from featstore.cli._options import (
    FiniteRange,
    VariadicOption,
    dtype_option,
    filled_cache_dir_option,
    in_gib,
    json_option,
    max_size_option,
    min_free_option,
    model_option,
    nframe_option,
    option_group,
    size,
    tower_option,
    usage_errors,
)
from featstore.records.budget import ON_MAX_ERROR
from featstore.records.storage import (
    CODEC_NAMES,
    GRANULARITIES,
    LOSSLESS,
    STORED_DTYPES,
    Storage,
)

if TYPE_CHECKING:
    from featstore.encoders.base import Encoder
    from featstore.encoders.registry import EncoderRecipe
    from featstore.pipeline.options import IngestOptions


def error_share(text: str) -> float:
    """Return the share that `2%` or `0.02` means; infinity for `none`."""
    if text.strip().lower() == "none":
        return math.inf
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(%?)", text.strip())
    share = float(match[1]) / (100 if match[2] else 1) if match else math.nan
    if not 0 <= share <= 1:
        raise click.BadParameter(f"{text!r} is no share of a whole; write 2%, 0.02 or none")
    return share


# In the order of the help. Those that are named as fields of IngestOptions become these.
ingest_options = option_group(
    click.option(
        "--videos",
        cls=VariadicOption,
        multiple=True,
        type=click.Path(),
        metavar="PATH...",
        help="Folders of videos, whose ids are their paths in it without the suffix; and single videos, whose ids are "
        "their file names without the suffix: as many as there are up to the next option.",
    ),
    click.option(
        "--manifest",
        type=click.Path(dir_okay=False),
        help="JSONL, CSV or TSV file with the fields video_id and path, in place of --videos.",
    ),
    click.option(
        "--datasets",
        cls=VariadicOption,
        multiple=True,
        metavar="NAME...",
        help="Benchmarks of VLMEvalKit in place of --videos, as in Video-MME_128frame MLVU_128frame. Each fills the "
        "dataset of its own name and sets its own number of frames.",
    ),
    click.option(
        "--lmms-tasks",
        cls=VariadicOption,
        multiple=True,
        metavar="NAME...",
        help="Tasks of lmms-eval in place of --videos, as in videomme mlvu_dev. They fill the datasets that --datasets "
        "does, with --nframe frames.",
    ),
    click.option(
        "--dataset",
        shell_complete=complete_dataset,
        help="Name of the dataset to fill; created if it does not exist. Required without --datasets.",
    ),
    model_option,
    tower_option,
    filled_cache_dir_option,
    *ENCODER_OPTIONS,
    nframe_option,
    click.option(
        "--sampling",
        "rule",
        default=defaults.SAMPLING,
        help="Which frames to take: linspace (as LongVA does), midpoint, vlmevalkit, fps:R for R per second, llava-ov "
        "(as VLMEvalKit does for LLaVA-OneVision), or qwen (as qwen-vl-utils does), also as qwen:fps=2,min=4,max=768.",
    ),
    click.option(
        "--quantize",
        "values",
        type=click.Choice([*STORED_DTYPES, LOSSLESS]),
        help="Data type of the stored values; lossless is the one they are computed in, as byte planes. "
        "Without --quantize, --scale and --codec a feature set that exists is "
        f"followed.  [default: {defaults.VALUES}]",
    ),
    click.option(
        "--scale",
        "granularity",
        type=click.Choice(GRANULARITIES),
        help="What one int8 scale is shared by: the values of a channel, of a token, or of the whole video; with "
        f"channel_token a value has two, its channel's and its token's.  [default: {defaults.GRANULARITY}]",
    ),
    click.option(
        "--codec",
        type=click.Choice(CODEC_NAMES),
        help="Compression of the stored values, without loss; raw is read without a copy, planes is for floats. "
        f"Without --quantize the values are {defaults.VALUES}, also if those of the feature set are not.  "
        f"[default: {defaults.CODEC}]",
    ),
    click.option(
        "--restore-as",
        "replace_storage",
        is_flag=True,
        help="Store the feature set as --quantize, --scale and --codec say from now on, also the videos that are "
        "stored in another way.",
    ),
    click.option(
        "--max-error",
        type=error_share,
        help="Error budget: how far 99 of 100 tokens of a video may be from the encoder's (relative L2), as 2%; or "
        "none. It holds for videos stored from now on; without it that of a feature set that exists is followed.  "
        f"[default: {100 * defaults.MAX_ERROR:g}%]",
    ),
    click.option(
        "--on-max-error",
        type=click.Choice(ON_MAX_ERROR),
        default=defaults.ON_MAX_ERROR,
        help="What becomes of a video that misses the error budget: it is stored as it was computed, stored all the "
        "same, or it fails.",
    ),
    dtype_option,
    click.option(
        "--device",
        "devices",
        default=defaults.DEVICE,
        metavar="NAME[,NAME...]",
        help="Device to encode on: auto, cpu, cuda or cuda:N. Several, as in cuda:0,cuda:1, get one encoder process "
        "each.",
    ),
    click.option(
        "--batch-frames",
        type=click.IntRange(1),
        help="Number of frames encoded at once.  "
        f"[default: {defaults.BATCH_FRAMES_CUDA} on CUDA, {defaults.BATCH_FRAMES_CPU} on a CPU]",
    ),
    click.option(
        "--decode-workers",
        "workers",
        type=click.IntRange(1),
        default=defaults.DECODE_WORKERS,
        help="Number of decoder processes.  [default: one per core]",
    ),
    click.option(
        "--decode-timeout",
        type=FiniteRange(0, min_open=True),
        default=defaults.DECODE_TIMEOUT,
        help="Maximum seconds to decode one video.",
    ),
    click.option(
        "--decode-memory",
        type=size,
        default=in_gib(defaults.DECODE_MEMORY),
        help="Maximum memory of a decoder process besides its frames; a video that needs more fails.",
    ),
    click.option(
        "--decoder",
        type=click.Choice(["auto", "av", "decord", "exact"]),
        default=defaults.DECODER,
        help="Library that reads the files. The frames of the first three are the same bytes: auto is PyAV, which is "
        "faster, for files whose frames are certain to be the same, and decord for all others; av is only PyAV, which "
        "also reads AV1; decord is only decord. exact takes the frames that a player shows, of any file that PyAV "
        "reads, which makes another feature set; decord miscounts some kinds of files.",
    ),
    click.option(
        "--on-clash",
        type=click.Choice(["skip", "error"]),
        default=defaults.ON_CLASH,
        help="What becomes of a video whose id is that of another file, which is stored and still there: it is left "
        "out and named (exit code 3), or nothing is ingested.",
    ),
    click.option("--limit", type=click.IntRange(1), help="Maximum number of videos to ingest."),
    click.option("--retry-failed", is_flag=True, help="Try the videos that failed before again."),
    min_free_option,
    max_size_option,
    json_option,
)


def choose_work(options: dict[str, Any]) -> IngestOptions:
    """Return how the work is done."""
    from featstore.pipeline.options import IngestOptions

    names = {field.name for field in fields(IngestOptions)}
    return IngestOptions(**{name: value for name, value in options.items() if name in names})


def choose_storage(options: dict[str, Any]) -> Storage | str | None:
    """Return how features are to be stored; None if nothing is said, which is as the feature set is."""
    if options["replace_storage"] and not options["values"]:
        raise click.UsageError(
            "--restore-as stores videos in another way: say in which with --quantize"
        )
    if options["values"] == LOSSLESS:
        if options["granularity"] or options["codec"]:
            raise click.UsageError(
                "--quantize lossless has no scale and a codec of its own: leave --scale and --codec out"
            )
        return LOSSLESS
    given = {name: options[name] for name in ("values", "granularity", "codec") if options[name]}
    with usage_errors():
        return Storage(**given) if given else None


def choose_encoder(options: dict[str, Any]) -> Encoder | list[EncoderRecipe]:
    """Return the encoder for one device, or the recipes for several."""
    devices = [name.strip() for name in options["devices"].split(",")]
    if len(devices) > 1 and not all(re.fullmatch(r"cpu|cuda(:[0-9]+)?", name) for name in devices):
        found = options["devices"]
        raise click.BadParameter(
            f"{found!r} does not name devices; write cuda:0,cuda:1", param_hint="--device"
        )
    recipes = [encoder_recipe(options, device) for device in devices]
    with usage_errors():
        return recipes[0].build() if len(recipes) == 1 else recipes
