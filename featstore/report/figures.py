"""Numbers as bars: where each bar of a picture begins and how high it is; the template draws them as SVG."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featstore.report.survey import ERROR_ENDS, PERIOD

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from featstore.report.survey import SetSurvey

_BARS = 40  # of a picture at most
_PAUSE = 1800  # seconds without a video that end a stretch


@dataclass(frozen=True)
class Histogram:
    """The token errors of a set as bars.

    Attributes:
        bars: number of videos of each bar.
        low: error at the left end of the first bar, and `high` at the right end of the last.
        budget: place of the error budget from left to right, 0 to 1; None if there is none.
    """

    bars: list[int]
    low: float
    high: float
    budget: float | None

    @property
    def middle(self) -> float:
        """Return the error in the middle of the axis, which is logarithmic."""
        return float((self.low * self.high) ** 0.5)


def error_histogram(found: SetSurvey) -> Histogram | None:
    """Return the bars of the bins in which there are videos; None if all are stored exactly, or there are none."""
    places = [i for i, count in enumerate(found.errors) if count]
    if not places:
        return None
    budget = found.row.max_error
    if budget is not None:
        places.append(min(range(len(found.errors)), key=lambda i: abs(ERROR_ENDS[i] - budget)))
    first, last = max(min(places) - 2, 0), min(max(places) + 3, len(found.errors))
    bars, step = _few(found.errors[first:last])
    low, ratio = float(ERROR_ENDS[first]), float(ERROR_ENDS[1] / ERROR_ENDS[0])
    high = low * ratio ** (step * len(bars))
    return Histogram(bars, low, high, None if budget is None else _place(budget, low, high))


def _place(value: float, low: float, high: float) -> float:
    """Return where `value` is on a logarithmic axis from `low` to `high`, 0 to 1."""
    return math.log(min(max(value, low), high) / low) / math.log(high / low)


def _few(counts: Sequence[int]) -> tuple[list[int], int]:
    """Return sums of neighbours, few enough to be seen, and how many make one."""
    step = -(-len(counts) // _BARS)
    return [sum(counts[i : i + step]) for i in range(0, len(counts), step)], step


@dataclass(frozen=True)
class Stretch:
    """An ingest, as far as the rows tell: videos that were stored without a long pause.

    Attributes:
        dataset: the dataset.
        start: seconds since 1970.
        seconds: until the last video.
        videos: number of them, and `size` their bytes.
        bars: number of videos by time.
    """

    dataset: str
    start: float
    seconds: float
    videos: int
    size: int
    bars: list[int]

    @property
    def per_minute(self) -> float | None:
        """Return videos a minute; None if it was too short to say."""
        return 60 * self.videos / self.seconds if self.seconds > PERIOD else None


def stretches(dataset: str, stored: Mapping[int, tuple[int, int]]) -> list[Stretch]:
    """Return when videos were stored, the latest first.

    Args:
        dataset: the dataset.
        stored: number of videos and bytes by period.
    """
    found: list[list[int]] = []
    for period in sorted(stored):
        if not found or (period - found[-1][-1]) * PERIOD > _PAUSE:
            found.append([])
        found[-1].append(period)
    return [_stretch(dataset, periods, stored) for periods in reversed(found)]


def _stretch(dataset: str, periods: list[int], stored: Mapping[int, tuple[int, int]]) -> Stretch:
    first, count = periods[0], periods[-1] - periods[0] + 1
    step = -(-count // _BARS)
    bars = [0] * -(-count // step)
    for period in periods:
        bars[(period - first) // step] += stored[period][0]
    videos, size = (sum(stored[period][i] for period in periods) for i in (0, 1))
    return Stretch(dataset, first * PERIOD, count * PERIOD, videos, size, bars)
