"""`featstore get` and `featstore info`: of imported features, and of exact ones, nothing is said that is not known."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from toys import store_videos, toy_features

from featstore.cli import main
from featstore.records.storage import Storage


def run(*words: object) -> str:
    done = CliRunner().invoke(main, list(map(str, words)))
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def imported(cache, tmp_path):
    (tmp_path / "files").mkdir()
    np.save(tmp_path / "files" / "a.npy", np.ones((8, 4), np.float32))
    files = ("--from-npy", tmp_path / "files", "--nframe", 2)
    run("import", *files, "--dataset", "old", "--cache-dir", cache, "--min-free", 0)
    return ("get", "--cache-dir", cache, "--dataset", "old", "a")


def test_what_nobody_knows_of_imported_features_is_not_shown_as_zero(imported):
    facts = dict(line.split(maxsplit=1) for line in run(*imported).splitlines())
    found = json.loads(run(*imported, "--json"))
    for name in ("frame_indices", "total_frames", "fps", "dtype", "error", "source"):
        assert (facts[name], found[name]) == ("unknown", None)
    assert (facts["rows"], facts["storage"], found["nframe"]) == ("8", "fp32", 2)


def test_the_error_of_exact_values_is_none(cache):
    store_videos(cache, "demo", {"a": toy_features(1)}, storage=Storage("fp32"))
    store_videos(cache, "other", {"a": toy_features(1)}, storage=Storage("int8"))
    exact, rounded = (
        run("info", "--cache-dir", cache, "--dataset", name) for name in ("demo", "other")
    )
    assert "none: all values are the encoder's" in exact
    assert "none: all values" not in rounded
    assert "relative L2" in rounded
