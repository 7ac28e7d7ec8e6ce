"""A few dozen questions in CI, hundreds in the drill."""

import pytest
from drill_runner import run_drill

pytestmark = pytest.mark.drill


def test_threads_and_children_that_share_a_model_get_the_right_answers(tmp_path):
    options = ("--questions", 30, "--threads", 4, "--children", 2, "--folder", tmp_path)
    figures = run_drill("models", *options)
    assert figures["questions"] >= 30
    assert [row["hung"] for row in figures["rows"]] == [0] * 5
    assert all(row["stored"] > 2 for row in figures["rows"][1:4])
