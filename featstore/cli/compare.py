"""featstore compare."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from featstore import defaults
from featstore.cli._completion import complete_dataset
from featstore.cli._log_options import log_options
from featstore.cli._options import (
    SOME_FAILED,
    FiniteRange,
    device_option,
    digest_prefix,
    dtype_option,
    json_option,
    model_option,
    not_empty,
    tower_option,
    usage_errors,
)
from featstore.cli._printing import print_json, print_table
from featstore.cli._progress import show_count
from featstore.cli._streams import note
from featstore.cli._study import refuse_study_options, study, study_options
from featstore.cli._words import how_many
from featstore.errors import plain_line

if TYPE_CHECKING:
    from featstore.models.compare import Comparison


@click.command()
@click.option(
    "--dataset",
    shell_complete=complete_dataset,
    help="Name of the dataset. Required without --study.",
)
@model_option
@tower_option
@click.option(
    "--cache-dir",
    envvar=defaults.CACHE_DIR_VARIABLE,
    show_envvar=True,
    callback=not_empty,
    type=click.Path(file_okay=False),
    help="The cache directory; each folder in it is a dataset. Required without --study.",
)
@click.option(
    "--samples",
    type=click.IntRange(1),
    default=defaults.COMPARE_SAMPLES,
    help="Maximum number of videos to compare.",
)
@click.option(
    "--seed", type=int, default=defaults.COMPARE_SEED, help="Seed of the random choice of videos."
)
@click.option(
    "--nframe",
    type=click.IntRange(1, 65536),
    help="Number of frames per video, to choose by it among the feature sets that the checkpoint made.",
)
@click.option(
    "--spec",
    callback=digest_prefix,
    help="The first 4 or more digits of a feature set's digest.  [default: the dataset's default set if the "
    "checkpoint made it, else the only one that it made]",
)
@click.option(
    "--decoder",
    type=click.Choice(["auto", "exact"]),
    help="Decoder of the feature set, to choose likewise.",
)
@click.option(
    "--generate", is_flag=True, help="Also compare greedy answers; loads the language model."
)
@click.option("--prompt", default=defaults.COMPARE_PROMPT, help="Question to ask about each video.")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1),
    default=defaults.COMPARE_MAX_NEW_TOKENS,
    help="Maximum number of new tokens per answer.",
)
@click.option(
    "--max-relative-l2",
    type=float,
    default=defaults.MAX_RELATIVE_L2,
    help="Maximum relative L2 distance between a video's stored and new features.",
)
@click.option(
    "--min-cosine",
    type=float,
    default=defaults.MIN_COSINE,
    help="Minimum cosine similarity between a video's stored and new features.",
)
@click.option(
    "--min-identical",
    type=FiniteRange(0, 1),
    default=defaults.MIN_IDENTICAL,
    help="Minimum share of identical answers.",
)
@study_options
@device_option
@dtype_option
@json_option
@log_options
def compare(**options: Any) -> None:
    """Encode a sample of the stored videos again and compare; exit code 1 if one is outside the limits.

    They are those of the default feature set if the checkpoint made it, else of the only set that it made. With
    --study, compare all ways of storing features, in place of those in the store.
    """
    if options["study"]:
        if options["videos"] or options["features"]:
            _leave_out_variable(options)
        study(options, _encoder_options(options))
    else:
        refuse_study_options(options)
        _compare(options)


def _leave_out_variable(options: dict[str, Any]) -> None:
    """Forget a cache directory that only the environment names, where a study takes its sample from elsewhere."""
    if click.get_current_context().get_parameter_source("cache_dir") == ParameterSource.ENVIRONMENT:
        options["cache_dir"] = None


def _compare(options: dict[str, Any]) -> None:
    from featstore.encoders import LongVAEncoder
    from featstore.models import CachedLongVA
    from featstore.models.compare import Limits, choose, fitting_sets
    from featstore.models.compare import compare as run
    from featstore.store.reader import FeatureStore

    if options["min_identical"] and not options["generate"]:
        raise click.UsageError("--min-identical applies to answers: also pass --generate")
    if not (options["dataset"] and options["cache_dir"]):
        raise click.UsageError("name the dataset with --dataset and --cache-dir")
    if not options["model_path"]:
        raise click.UsageError("name the checkpoint with --model-path")
    dataset = FeatureStore(options["cache_dir"])[options["dataset"]]
    which = options["nframe"], options["spec"]
    fitting_sets(dataset, *which)  # what is not there is refused before the checkpoint is read
    with usage_errors():
        encoder = LongVAEncoder(options["model_path"], **_encoder_options(options))
    chosen = choose(dataset, encoder, *which, options["decoder"])
    model = None
    if options["generate"]:
        model = CachedLongVA(options["model_path"], prefix_cache=0, **_encoder_options(options))
    samples = min(options["samples"], len(dataset.sets[chosen.digest]))
    with show_count(samples, "comparing") as count:

        def on_row(row: Comparison) -> None:
            note(f"compared {plain_line(row.video_id)}")
            count()

        report = run(
            dataset,
            encoder,
            model=model,
            prompt=options["prompt"],
            max_new_tokens=options["max_new_tokens"],
            samples=options["samples"],
            seed=options["seed"],
            spec=chosen.digest,
            limits=Limits(
                options["max_relative_l2"], options["min_cosine"], options["min_identical"]
            ),
            on_row=on_row,
        )
    if options["as_json"]:
        print_json(report.to_dict())
    else:
        _print_report(report)
    if not report.passed:
        sys.exit(1)
    if report.failures:
        sys.exit(SOME_FAILED)


def _encoder_options(options: dict[str, Any]) -> dict[str, Any]:
    return {
        "device": options["device"],
        "dtype": None if options["dtype"] == "auto" else options["dtype"],
        "vision_tower": options["vision_tower"],
    }


def _print_report(report: Any) -> None:
    click.echo(
        f"compared with {plain_line(report.spec.describe())}; encoded again in {report.dtype}"
    )
    rows = [
        (
            row.video_id,
            row.error.cosine,
            row.error.relative_l2,
            row.error.token_p99,
            row.error.max_abs,
            "" if row.identical is None else "yes" if row.identical else "no",
            "beyond the limit" if row in report.beyond else "",
        )
        for row in report.rows
    ]
    names = ("video_id", "cosine", "relative_l2", "token_p99", "max_abs", "identical", "")
    print_table(names, rows)
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
        f"{how_many(found['videos'], 'video')}: cosine {found['cosine_min']:.6f} at least, relative L2 "
        f"{found['relative_l2_mean']:.2e} on average and {found['relative_l2_max']:.2e} at most{answers}; "
        f"{verdict} the limits"
    )
