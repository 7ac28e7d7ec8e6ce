"""`featstore compare --study`: where its sample comes from, and what it prints and writes."""

import csv
import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from toys import store_videos, toy_features

from featstore.cli import main
from featstore.models import study as studies

pytestmark = pytest.mark.usefixtures("one_thread")
PNG = b"\x89PNG\r\n"


@pytest.fixture
def features(tmp_path):
    """Features of two videos, one of a name that a screen could misread."""
    folder = tmp_path / "features of $x$ and $"
    for seed, name in enumerate(("a", "sub/b \x1b[2J")):
        path = folder / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.random.default_rng(seed).normal(size=(4, 9, 32)).astype(np.float16))
    return folder


def run(*words):
    return CliRunner().invoke(main, ["compare", "--study", *map(str, words)])


def test_a_table_has_a_line_a_storage(features):
    done = run("--features", features)
    assert done.exit_code == 0, done.output
    names, *lines, last = done.stdout.splitlines()
    assert names.split()[:3] == ["storage", "MB/video", "ratio"]
    assert [line[:23].strip() for line in lines] == [str(kind) for kind in studies.STORAGES]
    assert last.startswith(f"2 videos of {features}; int8/channel takes ")
    assert done.stderr.splitlines() == ["studied a", r"studied sub/b \x1b[2J"]


def test_a_study_of_some_ways_has_times_beside_the_peer_only_if_that_is_one(features):
    lone = run("--features", features, "--storage", "int8/token zstd", "--storage", "fp16")
    assert [line.split()[0] for line in lone.stdout.splitlines()[1:-1]] == ["int8/token", "fp16"]
    assert " x" not in lone.stdout.splitlines()[0]
    both = run("--features", features, "--storage", "int8/channel", "--storage", "fp16")
    assert "store x  read x" in both.stdout.splitlines()[0]


@pytest.mark.slow
def test_json_csv_and_picture_say_the_same(features, tmp_path):
    pytest.importorskip("matplotlib")
    table, picture = tmp_path / "t.csv", tmp_path / "p.png"
    done = run("--features", features, "--json", "--csv", table, "--png", picture, "--samples", 1)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    with table.open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [row["storage"] for row in rows] == [row["stored_as"] for row in found["table"]]
    assert [float(row["token_p99"]) for row in rows] == [v["token_p99"] for v in found["studied"]]
    assert {row["videos"] for row in found["table"]} == {1}
    assert picture.read_bytes().startswith(PNG)


def test_a_picture_without_matplotlib_is_refused_before_the_work(features, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    done = run("--features", features, "--png", features / "p.png")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "pip install 'featstore[report]', or leave out --png" in done.stderr


def test_a_file_that_holds_no_features_costs_its_own_rows(features):
    np.save(features / "bad.npy", np.zeros(3))
    done = run("--features", features)
    assert done.exit_code == 3
    assert "not studied: bad: " in done.stdout
    assert "2 videos of" in done.stdout


def test_an_interrupt_leaves_what_was_found(features, monkeypatch, tmp_path):
    real, table = studies.read_features, tmp_path / "t.csv"

    def read(path, *more):
        if path.stem != "a":
            raise KeyboardInterrupt
        return real(path, *more)

    monkeypatch.setattr(studies, "read_features", read)
    done = run("--features", features, "--csv", table)
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (130, "featstore: interrupted")
    assert "1 video of" in done.stdout
    assert len(table.read_text().splitlines()) == 1 + len(studies.STORAGES)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "takes its sample from one place"),
        (["--features", "f", "--videos", "v"], 2, "takes its sample from one place"),
        (["--dataset", "d"], 2, "with both --dataset and --cache-dir"),
        (["--videos", "v"], 2, "name the checkpoint with --model-path"),
        (["--videos", "v", "w", "x"], 2, "name the checkpoint with --model-path"),
        (["--features", "f", "--generate"], 2, "leave out --model-path and --generate"),
        (["--features", "f", "--csv", "none/x.csv"], 2, "there is no folder 'none' for --csv"),
        (["--features", "f", "--storage", "int4"], 2, "use one of int8/tensor, int8/tensor lz4"),
        (["--features", "f"], 1, "f has no .npy file"),
    ],
)
def test_what_cannot_be_studied_is_refused(words, code, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*words)
    assert (done.exit_code, said in done.stderr) == (code, True), done.output


def test_a_device_that_is_not_there_is_refused(features):
    done = run("--features", features, "--device", "banana")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "device is 'banana'" in done.stderr


def test_options_of_a_study_need_it(tmp_path):
    words = ["compare", "--dataset", "d", "--cache-dir", str(tmp_path), "--png", "x.png"]
    done = CliRunner().invoke(main, words)
    assert (done.exit_code, "--png applies to a study" in done.stderr) == (2, True)


def test_a_file_that_cannot_be_written_is_an_error_after_the_table(features, tmp_path):
    (tmp_path / "taken").mkdir()
    done = run("--features", features, "--csv", tmp_path / "taken" / ("x" * 300))
    assert done.exit_code == 1
    assert "2 videos of" in done.stdout
    assert "choose another --csv" in done.stderr


@pytest.mark.slow
def test_videos_and_stored_ones_are_encoded_once_and_answered_from(tiny, sample_clips, tmp_path):
    words = ["--model-path", tiny, "--device", "cpu", "--nframe", 2, "--json"]
    listed = run("--videos", sample_clips, *words, "--generate", "--max-new-tokens", 3)
    assert listed.exit_code == 0, listed.output
    found = json.loads(listed.stdout)
    last = found["table"][-2]
    assert (last["stored_as"], last["identical_answers"], last["logit_kl"]) == ("fp32", 3, 0)
    cache = tmp_path / "cache"
    ingested = ["ingest", "--videos", sample_clips, "--dataset", "d", "--cache-dir", cache]
    ingested += ["--model-path", tiny, "--device", "cpu", "--nframe", 2, "--min-free", "1MB"]
    assert CliRunner().invoke(main, [*map(str, ingested)]).exit_code == 0
    store_videos(cache, "d", {"v": toy_features(0)})  # a set of another encoder is not studied
    stored = json.loads(run("--dataset", "d", "--cache-dir", cache, *words).stdout)
    errors = [
        [(v["video_id"], v["stored_as"], v["token_max"]) for v in study["studied"]]
        for study in (found, stored)
    ]
    assert errors[0] == errors[1]
    assert stored["features"] == found["features"]
