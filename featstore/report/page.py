"""The report on a cache: one page that needs nothing else, neither scripts nor the network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from featstore.errors import MissingExtra, plain_line
from featstore.report.figures import error_histogram, stretches
from featstore.report.survey import merged_reasons
from featstore.system.filesystems import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featstore.report.survey import CacheSurvey, SetSurvey

_SHOWN = 20  # rows of a table that may have many
_LONGEST = 240  # characters of a text


@dataclass(frozen=True)
class Evaluation:
    """What models asked of their stores in an evaluation, as a statistics file has it.

    Attributes:
        name: what the page calls it.
        hits: number of videos whose features came from the store.
        misses: number of videos that were decoded and encoded, or could not be.
        bytes_read: bytes of features.
        seconds: spent on reading, encoding and generating.
    """

    name: str
    hits: int
    misses: int
    bytes_read: int
    seconds: tuple[float, float, float]

    @property
    def hit_rate(self) -> float:
        """Return hits over all videos asked for, 0 if there were none."""
        return self.hits / ((self.hits + self.misses) or 1)


def render_page(
    survey: CacheSurvey,
    cache_dir: str,
    *,
    evaluations: Sequence[Evaluation] = (),
    now: float,
    version: str,
) -> str:
    """Return the page as HTML. Every text on it is escaped: ids and reasons may come from anyone.

    Args:
        survey: what the cache has.
        cache_dir: what the page calls it.
        evaluations: whose hit rates are shown.
        now: seconds since 1970.
        version: of featstore, which made the page.

    Raises:
        MissingExtra: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as exc:
        raise MissingExtra(
            "jinja2 is not installed, which makes the page: pip install 'featstore[report]'"
        ) from exc
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("featstore.report", ""),
        autoescape=True,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "bytes": format_bytes,
        "count": lambda number: f"{number:,}",
        "most_first": _most_first,
        "duration": _duration,
        "moment": _moment,
        "percent": _percent,
    }
    sets = sorted(survey.sets, key=lambda there: -there.record_bytes)
    found = [stretch for there in survey.sets for stretch in stretches(there.dataset, there.stored)]
    found.sort(key=lambda stretch: -stretch.start)
    reasons = merged_reasons(survey.sets)
    return environment.get_template("page.html").render(
        cache_dir=cache_dir,
        now=now,
        zone=f"{datetime.fromtimestamp(now).astimezone():%Z}",
        version=version,
        survey=survey,
        sets=sets,
        total=_total(survey.sets),
        histograms=[(there, error_histogram(there)) for there in sets if there.videos],
        reasons=reasons[:_SHOWN],
        more_reasons=reasons[_SHOWN:],
        stretches=found[:_SHOWN],
        more_stretches=found[_SHOWN:],
        evaluations=evaluations,
    )


def _total(sets: Sequence[SetSurvey]) -> dict[str, Any]:
    names = ("videos", "frames", "record_bytes", "failed")
    total = {name: sum(getattr(there, name) for there in sets) for name in names}
    return total | {
        "datasets": len({there.dataset for there in sets}),
        "largest": max((there.record_bytes for there in sets), default=0),
        "doubts": sum(sum(there.doubts.values()) for there in sets),
    }


def _shown(value: Any) -> Any:
    """Return what the template prints: of text, no control characters and no endless line."""
    if type(value) is not str:  # markup of the template's own is another type
        return value
    line = plain_line(value)
    return line if len(line) <= _LONGEST else f"{line[:160]} … {line[-60:]}"


def _most_first(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def _percent(share: float) -> str:
    """Return a share with two digits that count: `0.94%`."""
    if not math.isfinite(share):
        return str(share)
    whole = 100 * share
    return f"{whole:.0f}%" if whole >= 10 or whole == 0 else f"{whole:#.2g}%"


def _moment(seconds: float) -> str:
    """Return a time in local time; the number if it is outside the calendar."""
    try:
        return f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M}"
    except (OverflowError, ValueError, OSError):
        return repr(seconds)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if not (hours or minutes):
        return f"{rest} s"
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
