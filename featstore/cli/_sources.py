"""The videos that `featstore ingest` is asked for: folders and files, a manifest, or benchmarks of a harness."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from featstore.pipeline.listing import Listing
    from featstore.sampling import Sampling


# Options that fill several datasets, each with the name that its benchmark has.
BENCHMARK_WAYS = ("datasets", "lmms_tasks")
_WAYS = ("videos", "manifest", *BENCHMARK_WAYS)


@dataclass(frozen=True)
class IngestSource:
    """The videos of one dataset, and which of their frames to take; how many questions are asked about them."""

    dataset: str
    videos: Listing
    sampling: Sampling
    questions: int | None = None


def choose_sources(options: dict[str, Any]) -> list[IngestSource]:
    """Return what the options of `featstore ingest` name; everything is listed before any video is read."""
    ways = given_ways(options)
    if len(ways) > 1:
        named = " and ".join(map(option_of, ways))
        raise click.UsageError(f"{named} each name the videos: leave all but one out")
    if not ways:
        raise click.UsageError(
            "name the videos with --videos, with --manifest, with --datasets or with --lmms-tasks"
        )
    if ways[0] in BENCHMARK_WAYS:
        if options["dataset"]:
            raise click.UsageError(
                f"{option_of(ways[0])} fills the dataset of each benchmark: leave out --dataset"
            )
        if ways == ["lmms_tasks"]:
            return _lmms_tasks(options)
        return [_benchmark(name, options) for name in dict.fromkeys(options["datasets"])]
    if not options["dataset"]:
        raise click.UsageError("name the dataset to fill with --dataset")
    from featstore.pipeline.listing import list_videos, read_listing

    sampling = choose_sampling(options["rule"], options["nframe"])
    manifest = options["manifest"]
    videos = read_listing(manifest) if manifest else list_videos(options["videos"])
    return [IngestSource(options["dataset"], videos, sampling)]


def given_ways(options: dict[str, Any]) -> list[str]:
    """Return which of the options that name videos are given."""
    return [name for name in _WAYS if options[name]]


def option_of(name: str) -> str:
    """Return an option as it is written, of its name in Python."""
    return "--" + name.replace("_", "-")


def _lmms_tasks(options: dict[str, Any]) -> list[IngestSource]:
    from featstore.integrations.lmms_eval.tasks import list_task_videos

    sampling = choose_sampling(options["rule"], options["nframe"])
    with contextlib.redirect_stdout(sys.stderr):  # it reports there, too
        found = list_task_videos(list(dict.fromkeys(options["lmms_tasks"])))
    return [
        IngestSource(listed.dataset, listed.videos, sampling, listed.questions) for listed in found
    ]


def _benchmark(config: str, options: dict[str, Any]) -> IngestSource:
    from featstore.integrations.vlmevalkit.datasets import list_videos

    # VLMEvalKit reports on stdout, which is for results.
    with contextlib.redirect_stdout(sys.stderr):
        rule = choose_sampling(options["rule"], options["nframe"])
        found = list_videos(config, rule.rate if rule.policy == "qwen" else None)
    if found.nframe < 1:
        return IngestSource(found.dataset, found.videos, rule, found.questions)
    given = click.get_current_context().get_parameter_source("nframe")
    if given != ParameterSource.DEFAULT and options["nframe"] != found.nframe:
        raise click.UsageError(
            f"{config} takes {found.nframe} frames, --nframe says {options['nframe']}: leave out --nframe"
        )
    sampling = choose_sampling(options["rule"], found.nframe)
    return IngestSource(found.dataset, found.videos, sampling, found.questions)


def choose_sampling(rule: str, nframe: int) -> Sampling:
    """Return which frames are taken; click.BadParameter if there is no such rule."""
    from featstore.sampling import Sampling

    try:
        return Sampling.parse(rule, nframe)
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="--sampling") from exc
