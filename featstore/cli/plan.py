"""featstore plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from featstore.cli._encoder_options import FROZEN, encoder_recipe
from featstore.cli._estimates import plan_sources, show_estimates
from featstore.cli._ingest_options import choose_storage, ingest_options
from featstore.cli._log_options import log_options
from featstore.cli._options import FiniteRange, usage_errors
from featstore.cli._sources import choose_sampling, given_ways, option_of

if TYPE_CHECKING:
    from featstore.encoders.base import Encoder
    from featstore.geometry import Geometry
    from featstore.pipeline.estimate import Estimate


@click.command()
@ingest_options
@click.option(
    "--videos-count",
    type=click.IntRange(1),
    help="Guess for so many videos, in place of naming them; only the configs of the checkpoint are read.",
)
@click.option(
    "--hours",
    type=FiniteRange(0, min_open=True),
    help="Hours that the videos of --videos-count are together.",
)
@click.option(
    "--measure",
    is_flag=True,
    help="Measure rates: ingest some of the videos into a temporary folder (TMPDIR), for a minute at most or so.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False),
    help="Draw the bytes of each storage, by dataset, into this .png file; needs featstore[report].",
)
@log_options
def plan(
    videos_count: int | None, hours: float | None, measure: bool, out: str | None, **options: Any
) -> None:
    """Show what an ingest takes, bytes and time, and whether it fits; exit code 4 if it does not.

    Takes the options of `featstore ingest`, and stores nothing. The heads of the files are read, no frame is decoded.
    """
    if videos_count is None and hours is not None:
        raise click.UsageError("--hours says how long the videos of --videos-count are: name both")
    if videos_count is not None:
        from featstore.pipeline.rates import known_rates

        guess = _guess(videos_count, hours, options, measure=measure)
        estimates, rates = [guess], known_rates(guess.geometry)
    else:
        estimates, rates = plan_sources(options, measure=measure)
    show_estimates(estimates, rates, options, picture=out)


def _guess(count: int, hours: float | None, options: dict[str, Any], *, measure: bool) -> Estimate:
    from featstore.pipeline.estimate import Estimate, guess_clips
    from featstore.records.storage import Storage, storage_for

    named = [*given_ways(options), *["measure"] * measure]
    if named:
        more = " and ".join(map(option_of, named))
        raise click.UsageError(f"--videos-count is a guess without files: leave out {more}")
    sampling = choose_sampling(options["rule"], options["nframe"])
    seconds = None if hours is None else hours * 3600
    return Estimate(
        dataset=options["dataset"] or "guess",
        storage=storage_for(choose_storage(options), _dtype(options)) or Storage(),
        geometry=_geometry(options),
        clips=guess_clips(count, seconds, sampling),
        videos=count,
    )


def _dtype(options: dict[str, Any]) -> str:
    """Return what the encoder would compute in; on a GPU if that is not said, as LongVA does."""
    if options["encoder_name"] not in ("longva", "transformers"):
        return _encoder(options).identity.dtype
    if options["encoder_name"] == "transformers" and options["dtype"] == "auto":
        return "bf16"
    return "fp16" if options["dtype"] == "auto" else str(options["dtype"])


def _encoder(options: dict[str, Any]) -> Encoder:
    with usage_errors():
        return encoder_recipe(options, options["devices"].split(",")[0]).build()


def _geometry(options: dict[str, Any]) -> Geometry:
    """Return the rows that the encoder makes, without its weights."""
    from featstore.encoders.longva.shape import feature_shape
    from featstore.geometry import Geometry

    words: dict[str, Any] = encoder_recipe(options, "cpu").options  # also refuses what is unused
    if options["encoder_name"] == "transformers":
        from featstore.encoders.transformers_vision.output import read_output

        chosen = {name: words[name] for name in FROZEN if name in words}
        with usage_errors():
            return read_output(words["checkpoint"], **chosen).geometry
    if options["encoder_name"] != "longva":
        return _encoder(options).identity.geometry
    found = feature_shape(words["checkpoint"], 1, vision_tower=options["vision_tower"])
    return Geometry(found.tokens_per_frame, found.width)
