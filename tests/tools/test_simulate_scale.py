from __future__ import annotations

import math

import pytest
from click.testing import CliRunner
from simulate_scale import Setting, main, simulate

CALM = {"mtbf_hours": 1e12}


def test_the_slowest_of_encoding_disk_and_link_sets_the_pace():
    encode = simulate(Setting(**CALM))
    assert encode["bottleneck"] == "encode"
    assert encode["hours"] == pytest.approx(1_000_000 / (8 * 2 * 4.7) / 3600)
    disk = simulate(Setting(disk_mb=160, **CALM))
    assert disk["bottleneck"] == "disk"
    assert disk["hours"] == pytest.approx(1_000_000 * 66 / (8 * 160) / 3600)
    assert simulate(Setting(link_mb=100, **CALM))["bottleneck"] == "link"


def test_every_byte_is_in_a_shard_and_each_shard_has_an_index():
    found = simulate(Setting(videos=10_001, processes=3, **CALM))
    a_process = math.ceil(3334 * 66e6 / (64 * 2**30))
    assert found["shards"] == 3 * a_process
    assert found["objects"] == 2 * found["shards"] + 1
    assert found["bytes_tb"] == pytest.approx(0.660066)


def test_failures_cost_what_was_in_flight_and_the_same_seed_draws_them_again():
    often = Setting(mtbf_hours=1)
    found = simulate(often)
    assert found == simulate(often)
    assert 0 < found["videos_made_again"] <= 20 * found["node_failures"]
    assert found["hours"] > simulate(Setting(**CALM))["hours"]


def test_what_cannot_be_computed_is_refused_on_the_command_line():
    done = CliRunner().invoke(main, ["--encode-rate", "0"])
    assert done.exit_code == 2
    assert "encode_rate is 0.0; it must be above 0" in done.output
