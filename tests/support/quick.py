"""What a plain `pytest` does less of, to be quick; `pytest -m ""` does all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Iterable

FULL, QUICK = 100, 8  # examples of a property
# About how much longer than others tests with a marker take.
WEIGHTS = {"slow": 10, "race": 20, "ray": 20, "benchmark": 100, "crash": 100, "drill": 200}


def load_profile(marks: str) -> None:
    """Take as many examples as suit a run of the tests that `marks`, the argument of -m, leaves."""
    examples = QUICK if marks.startswith("not ") else FULL
    # An example that takes long on a busy machine is no failure.
    settings.register_profile("featstore", deadline=None, max_examples=examples)
    settings.load_profile("featstore")


def weight(item: pytest.Item) -> int:
    """Return about how long a test takes, in the time of one without a marker."""
    return max((WEIGHTS.get(mark.name, 1) for mark in item.iter_markers()), default=1)


def repeats(item: pytest.Item, number: int) -> bool:
    """Whether the case of this `number` of a test does again what others did: examples, races and large tables."""
    of_examples = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
    return number > 20 or of_examples or any(map(item.get_closest_marker, ("fuzz", "race")))


def examples(number: int, **options: Any) -> settings:
    """Settings of `number` examples, or of their share in a quick run."""
    share = number * settings().max_examples // FULL
    return settings(max_examples=max(1, share), deadline=None, **options)


def first_is_quick(values: Iterable[Any]) -> list[Any]:
    """Parameters of which all but the first are slow."""
    first, *others = values
    return [first, *(pytest.param(other, marks=pytest.mark.slow) for other in others)]
