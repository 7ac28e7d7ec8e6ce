"""Fifty kills in CI, a thousand in the drill; and the judge that stands behind both can say no."""

import pytest
from drill_runner import run_drill
from drills.crash.scene import compare
from drills.shared.journal import replay
from drills.shared.look import Found

pytestmark = [pytest.mark.crash, pytest.mark.drill]
DONE = {"kind": "acknowledged"}


def begin(**changes):
    return {"kind": "begin", "what": "a commit", "changes": changes}


def test_fifty_kills_lose_nothing(tmp_path):
    figures = run_drill("crash", "--kills", 50, "--folder", tmp_path)
    assert figures["kills"] == 50
    assert sum(row["acknowledged"] for row in figures["rows"]) > 20


def test_a_step_under_way_may_be_there_or_not():
    lines = [begin(a=1), DONE, begin(a=2, b=2)]
    assert replay(lines) == ({"a": 1}, lines[-1])
    for versions in ({"a": 1}, {"a": 2, "b": 2}):
        assert compare(lines, Found(versions)).problems == []


@pytest.mark.parametrize(
    ("versions", "lost", "half"),
    [
        ({}, 1, 0),  # an acknowledged video is gone
        ({"a": 0}, 1, 0),  # an older version is back
        ({"a": 1, "c": 3}, 1, 0),  # one that nobody made
        ({"a": 2}, 0, 1),  # a step was done by half
    ],
)
def test_what_is_neither_before_nor_after_is_a_loss(versions, lost, half):
    lines = [begin(a=1), DONE, begin(a=2, b=2)]
    outcome = compare(lines, Found(versions))
    assert (outcome.lost, outcome.half) == (lost, half)
    assert len(outcome.problems) == 1
