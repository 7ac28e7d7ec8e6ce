"""featstore report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featstore import __version__, defaults
from featstore.cli._files import write_file
from featstore.cli._log_options import log_options
from featstore.cli._options import cache_dir_option, json_option, named_values
from featstore.cli._printing import print_json
from featstore.cli._streams import note, say
from featstore.cli._words import how_many, how_many_stored
from featstore.errors import plain_line
from featstore.fields import all_finite, time_text
from featstore.system.filesystems import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from featstore.report.page import Evaluation
    from featstore.report.survey import CacheSurvey

_STAGES = ("reading_seconds", "encoding_seconds", "generating_seconds")
_LINE_SECONDS = 10.0  # between lines of progress


@click.command()
@cache_dir_option
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False),
    default=defaults.REPORT_FILE,
    help="The HTML file to write.",
)
@click.option(
    "--statistics",
    multiple=True,
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="Statistics of an evaluation, whose hit rate is shown: the file that $FEATSTORE_STATISTICS named when it ran. "
    "Repeatable.",
)
@click.option(
    "--list",
    "lists",
    multiple=True,
    metavar="DATASET=FILE",
    callback=named_values("DATASET=FILE"),
    help="All videos that a dataset should have, to report which are missing: a manifest as for featstore ingest. "
    "Repeatable.",
)
@json_option
@log_options
def report(
    cache_dir: str, out: str, statistics: tuple[str, ...], lists: dict[str, str], as_json: bool
) -> None:
    """Write a page about a cache: sizes, errors, failures, decoders, ingests, hit rates, coverage.

    The page is one HTML file that needs no network and no scripts. With --json the figures are printed, and no page is
    written. Needs featstore[report].
    """
    from featstore.integrations.benchmarks import BENCHMARKS, VIDEO_COUNTS
    from featstore.pipeline.listing import read_listing
    from featstore.report.page import render_page
    from featstore.report.survey import survey_cache

    listed = {
        name: [video.video_id for video in read_listing(file)] for name, file in lists.items()
    }
    evaluations = [_evaluation(file) for file in statistics]
    survey = survey_cache(
        cache_dir,
        counts={name: VIDEO_COUNTS.get(name) for name in BENCHMARKS},
        listed=listed,
        on_rows=_line_from_time_to_time(),
    )
    if as_json:
        print_json(_facts(survey, evaluations))
        return
    page = render_page(
        survey, cache_dir, evaluations=evaluations, now=time.time(), version=__version__
    )
    write_file(out, page.encode())
    videos = sum(there.videos for there in survey.sets)
    size = sum(there.record_bytes for there in survey.sets)
    sets = len(survey.sets)
    click.echo(
        f"{plain_line(out)}: {how_many_stored(videos, sets)} in {how_many(sets, 'feature set')}, "
        f"{format_bytes(size)} of records"
    )
    for name, why in survey.errors.items():
        say(f"not in it: {plain_line(f'{name}: {why}')}")


def _evaluation(file: str) -> Evaluation:
    from featstore.models.statistics import read_statistics
    from featstore.report.page import Evaluation

    found = read_statistics(file)
    seconds = found.seconds_reading, found.seconds_encoding, found.seconds_generating
    return Evaluation(Path(file).stem, found.hits, found.misses, found.bytes_read, seconds)


def _line_from_time_to_time() -> Callable[[int], None]:
    """Return a function that says how many rows were read, at most every ten seconds."""
    last = time.monotonic()

    def on_rows(rows: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _LINE_SECONDS:
            last = time.monotonic()
            note(f"{rows:,} rows read")

    return on_rows


def _facts(survey: CacheSurvey, evaluations: list[Evaluation]) -> dict[str, Any]:
    """Return the figures of the page as plain values."""
    from featstore.report.survey import PERIOD

    sets = []
    for there in survey.sets:
        facts: dict[str, Any] = {
            name: value
            for name, value in vars(there).items()
            if name not in ("row", "stored", "is_default", "errors", "beyond")
        }
        facts |= {
            "feature_set": there.row.spec.digest,
            "default": there.is_default,
            "token_p99_histogram": _bins(there.errors),
            "max_error": there.row.max_error,
            "missed": there.beyond,
            "worst": [all_finite(video._asdict()) for video in there.worst],
            "failures": there.failed,
            "reasons": [
                {"reason": found.text, "failures": found.videos, "examples": found.examples}
                for found in there.failures.values()
            ],
            "stored_by_time": [
                {"since": time_text(period * PERIOD), "videos": videos, "record_bytes": size}
                for period, (videos, size) in sorted(there.stored.items())
            ],
        }
        sets.append(facts)
    return {
        "feature_sets": sets,
        "datasets": [{"dataset": name, "problems": [why]} for name, why in survey.errors.items()],
        "coverage": [
            {
                "dataset": there.dataset,
                "total": there.videos,
                "videos": there.stored,
                "failures": there.failed,
                "missing": there.missing,
            }
            for there in survey.coverage
        ],
        "evaluations": [
            {
                "name": run.name,
                "hits": run.hits,
                "misses": run.misses,
                "hit_rate": run.hit_rate,
                "read_bytes": run.bytes_read,
                **dict(zip(_STAGES, run.seconds, strict=True)),
            }
            for run in evaluations
        ],
    }


def _bins(counts: list[int]) -> list[dict[str, float]]:
    """Return the bins of token errors in which there are videos."""
    from featstore.report.survey import ERROR_ENDS

    ends = ERROR_ENDS.tolist()
    bins = zip(ends[:-1], ends[1:], counts, strict=True)
    return [{"low": low, "high": high, "videos": count} for low, high, count in bins if count]
