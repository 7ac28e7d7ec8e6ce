"""The error budget of a feature set: what is a miss, and how the record of a video that misses is stored."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featstore import defaults
from featstore.errors import NotFinite, QuantizeError

if TYPE_CHECKING:
    from featstore.records.quantization import QuantError
    from featstore.records.storage import Storage

ON_MAX_ERROR = ("lossless", "warn", "fail")
# So many misses among so many videos show that the storage does not suit the features.
MOST_MISSES, FIRST_VIDEOS = 16, 32


@dataclass(frozen=True)
class ErrorBudget:
    """How far stored values may be from the encoder's, and what becomes of a video whose are farther.

    Args:
        max_error: the most that the 99th percentile of the tokens' relative L2 may be, as 0.02; None for any.
        on_miss: `lossless` stores the features as they were computed, `warn` as asked for all the same, `fail` not.

    Raises:
        ValueError: an argument is none of these.
    """

    max_error: float | None = defaults.MAX_ERROR
    on_miss: str = defaults.ON_MAX_ERROR

    def __post_init__(self) -> None:
        """Refuse what is no budget."""
        if self.on_miss not in ON_MAX_ERROR:
            raise ValueError(
                f"on_max_error is {self.on_miss!r}; use one of {', '.join(ON_MAX_ERROR)}"
            )
        if self.max_error is not None and not self.max_error >= 0:
            raise ValueError(
                f"max_error is {self.max_error}; use a share such as 0.02, or math.inf for none"
            )

    @classmethod
    def of(cls, asked: float | None, followed: float | None, on_miss: str) -> ErrorBudget:
        """Return the budget that is asked for, infinite for none; if None is, the one that is followed."""
        found = followed if asked is None else asked
        return cls(None if found is None or math.isinf(found) else found, on_miss)

    def misses(self, error: QuantError) -> bool:
        """Return whether a video of this error misses it."""
        return self.max_error is not None and not error.token_p99 <= self.max_error

    def choose(
        self, storage: Storage, fallback: Storage | None, outcome: QuantError | QuantizeError
    ) -> Storage:
        """Return how a video is stored: as asked for, or without loss.

        Args:
            storage: how it is asked for.
            fallback: how it is stored if it misses; None if there is no such way.
            outcome: the error of its values stored as asked for, or why they cannot be.

        Raises:
            QuantizeError: it cannot be stored, or it misses and is to fail.
        """
        if isinstance(outcome, NotFinite):
            raise outcome
        if not isinstance(outcome, QuantizeError) and not self.misses(outcome):
            return storage
        if fallback is not None:
            return fallback
        if isinstance(outcome, QuantizeError):
            raise outcome
        if self.on_miss == "warn":
            return storage
        raise QuantizeError(
            f"1 of 100 tokens is {percent(outcome.token_p99)} off or more as {storage}, the error budget is {self}: "
            "store with less loss (--quantize, --scale), allow more with --max-error, or take --on-max-error lossless"
        )

    def __str__(self) -> str:
        """Return `2%`, or `none`."""
        return "none" if self.max_error is None else percent(self.max_error)


def percent(share: float) -> str:
    """Return a share for people, as `2%`."""
    return f"{100 * share:.3g}%"


def too_many(
    misses: int,
    videos: int,
    budget: ErrorBudget,
    storage: Storage,
    before: tuple[int, int] = (0, 0),
) -> str:
    """Return why an ingest stops whose first `videos` had so many misses that are stored without loss; else nothing.

    Args:
        misses: number of them.
        videos: number of videos.
        budget: the error budget.
        storage: how features are to be stored.
        before: misses and videos that were stored before under the same budget; half of all must miss, too.
    """
    first, misses, stored = videos, misses + before[0], videos + before[1]
    if misses < MOST_MISSES or first > FIRST_VIDEOS or 2 * misses < stored:
        return ""
    scales = "" if storage.granularity == "channel_token" else (
        "; with two scales a value, --quantize int8 --scale channel_token --restore-as"
    )  # fmt: skip
    return (
        f"{misses} of the first {stored} videos missed the error budget of {budget} as {storage}, and are stored "
        "losslessly, which takes a multiple of the bytes; it stopped before the disk fills. Choose how to go on: all "
        f"losslessly, --quantize lossless --restore-as{scales}; with more error, --max-error 5%, --max-error none or "
        "--on-max-error warn"
    )
