"""Two kills in CI, twenty in the drill."""

import pytest
from drill_runner import run_drill


@pytest.mark.crash
@pytest.mark.drill
def test_a_share_that_is_killed_makes_what_one_ingest_makes(tmp_path):
    figures = run_drill("shards", "--kills", 2, "--videos", 8, "--folder", tmp_path)
    assert figures["rows"][0]["shards"] >= 4
