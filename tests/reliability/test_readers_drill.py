"""Eight seconds of eight readers beside a writer in CI, ten minutes in the drill."""

import pytest
from drill_runner import run_drill

pytestmark = pytest.mark.drill


def test_readers_beside_a_writer_read_what_is_right_and_leave_no_slot_behind(tmp_path):
    options = ("--seconds", 8, "--pause", 2, "--folder", tmp_path)
    (row,) = run_drill("readers", *options)["rows"]
    assert row["reads"] > 100
    assert row["commits"] > 20
    assert row["readers killed"] > 2
