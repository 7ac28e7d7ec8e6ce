"""A few hundred gets and some videos in CI, ten thousand and five hundred in the drill; and it can say no."""

import pytest
from drill_runner import run_drill
from drills.memory.samples import MIB, Series

pytestmark = pytest.mark.drill


def test_memory_and_descriptors_stay_flat(tmp_path):
    figures = run_drill("memory", "--gets", 1000, "--videos", 100, "--folder", tmp_path)
    assert [row["work"] for row in figures["rows"]] == [
        "gets: reader",
        "ingested videos: ingest",
        "ingested videos: writer",
        "ingested videos: decoder",
    ]
    assert all(row["done"] > 20 for row in figures["rows"])


def test_what_grows_is_seen_to_grow():
    done = list(range(100))
    leaky = Series("leaky", done, [i * MIB for i in done], [5 + i // 10 for i in done])
    early, late, before, after = leaky.growth()
    assert late - early == 60 * MIB
    assert (before, after) == (8, 14)
