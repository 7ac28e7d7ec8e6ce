"""featstore compare."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from featstore.cli._options import (
    cache_dir_option,
    json_option,
    model_option,
    spec_option,
    tower_option,
    usage_errors,
)
from featstore.cli._printing import print_json, print_table
from featstore.cli._streams import say
from featstore.cli.ingest import SOME_FAILED
from featstore.errors import plain_line

if TYPE_CHECKING:
    from featstore.encoders import LongVAEncoder
    from featstore.models import CachedLongVA


@click.command()
@click.option("--dataset", required=True, help="The dataset.")
@model_option
@tower_option
@cache_dir_option
@click.option("--samples", type=click.IntRange(1), default=100, show_default=True, help="Videos.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the choice of videos.")
@click.option("--nframe", type=int, help="Frames a video, where feature sets differ in it.")
@spec_option
@click.option(
    "--generate", is_flag=True, help="Compare greedy answers too; loads the language model."
)
@click.option("--prompt", default="Describe this video.", show_default=True, help="What is asked.")
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=64, show_default=True, help="Of an answer."
)
@click.option(
    "--max-relative-l2",
    type=float,
    default=0.05,
    show_default=True,
    help="Largest relative L2 of a video's stored features to fresh ones.",
)
@click.option(
    "--min-cosine", type=float, default=0.998, show_default=True, help="Smallest cosine of a video."
)
@click.option(
    "--min-identical",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Smallest share of identical answers.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "fp16", "bf16", "fp32"]),
    default="auto",
    show_default=True,
    help="What encoder and model compute in; auto is fp16 on CUDA, fp32 on a CPU.",
)
@json_option
def compare(**options: Any) -> None:
    """Encode a sample of stored videos afresh and compare; exit 1 beyond the limits."""
    from featstore.models.compare import Limits
    from featstore.models.compare import compare as run
    from featstore.store.reader import FeatureStore

    if options["min_identical"] and not options["generate"]:
        raise click.UsageError("--min-identical is of answers: pass --generate too")
    dataset = FeatureStore(options["cache_dir"])[options["dataset"]]
    encoder, model = _build(options)
    report = run(
        dataset,
        encoder,
        model=model,
        prompt=options["prompt"],
        max_new_tokens=options["max_new_tokens"],
        samples=options["samples"],
        seed=options["seed"],
        nframe=options["nframe"],
        spec=options["spec"],
        limits=Limits(options["max_relative_l2"], options["min_cosine"], options["min_identical"]),
        on_row=lambda row: say(f"compared {plain_line(row.video_id)}"),
    )
    if options["as_json"]:
        print_json(report.to_dict())
    else:
        _print_report(report)
    if not report.passed:
        sys.exit(1)
    if report.failures:
        sys.exit(SOME_FAILED)


def _build(options: dict[str, Any]) -> tuple[LongVAEncoder, CachedLongVA | None]:
    """Return the encoder and, where answers are asked for, the model."""
    from featstore.encoders import LongVAEncoder
    from featstore.models import CachedLongVA

    checkpoint = options["model_path"]
    if not checkpoint:
        raise click.UsageError("name the checkpoint with --model-path")
    where = {
        "device": options["device"],
        "dtype": None if options["dtype"] == "auto" else options["dtype"],
        "vision_tower": options["vision_tower"],
    }
    with usage_errors():
        encoder = LongVAEncoder(checkpoint, **where)
        if not options["generate"]:
            return encoder, None
        return encoder, CachedLongVA(checkpoint, prefix_cache=0, **where)


def _print_report(report: Any) -> None:
    rows = [
        {
            "video_id": row.video_id,
            "cosine": round(row.error.cosine, 6),
            "relative_l2": round(row.error.relative_l2, 6),
            "max_abs": round(row.error.max_abs, 5),
            "identical": "" if row.identical is None else "yes" if row.identical else "no",
            "": "beyond the limit" if row in report.beyond else "",
        }
        for row in report.rows
    ]
    print_table(rows, as_json=False)
    for video, reason in report.failures.items():
        click.echo(f"not compared: {plain_line(f'{video}: {reason}')}")
    found = report.summary()
    if not report.rows:
        click.echo("nothing was compared")
        return
    answers = (
        "" if found["identical"] is None else f", {found['identical']:.0%} of answers identical"
    )
    verdict = "within" if report.passed else "beyond"
    click.echo(
        f"{found['videos']} videos: cosine {found['cosine_min']:.6f} at least, relative L2 "
        f"{found['relative_l2_mean']:.2e} on average and {found['relative_l2_max']:.2e} at most{answers}; "
        f"{verdict} the limits"
    )
