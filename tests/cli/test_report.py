"""`featstore report`: a page, a sentence, and the same figures as JSON."""

import json

import pytest
from click.testing import CliRunner
from toys import store_videos, toy_features

from featstore.cli import main
from featstore.store.paths import DATA_FILE


@pytest.fixture
def words(cache, tmp_path, monkeypatch):
    store_videos(cache, "demo", {"a": toy_features(1), "b": toy_features(2)})
    (tmp_path / "run 1.json").write_text('{"hits": 3, "misses": 1}\n{"hits": 4, "misses": 0}\n')
    (tmp_path / "all.csv").write_text("video_id,path\na,a.mp4\nc,c.mp4\n")
    monkeypatch.chdir(tmp_path)
    return [
        "report",
        "--cache-dir",
        "cache",
        "--statistics",
        "run 1.json",
        "--list",
        "demo=all.csv",
    ]


def test_it_writes_a_page_and_says_what_is_in_it(words, tmp_path):
    before = (tmp_path / "cache" / "demo" / DATA_FILE).read_bytes()
    done = CliRunner().invoke(main, words)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == "report.html: 2 videos in 1 feature set, 8.2 KiB of records\n"
    page = (tmp_path / "report.html").read_text()
    for text in (
        "run 1",
        "88%",
        "1 of 2",
        "4fcbe4bd · 4 frames, linspace",
    ):
        assert text in page
    assert "Video-MME" not in page  # a benchmark of which nothing is there
    assert (tmp_path / "cache" / "demo" / DATA_FILE).read_bytes() == before


def test_json_has_the_figures_and_writes_no_page(words, tmp_path):
    done = CliRunner().invoke(main, [*words, "--json"])
    found = json.loads(done.stdout)
    [there] = found["feature_sets"]
    assert (there["dataset"], there["videos"], there["stored_by_time"][0]["videos"]) == (
        "demo",
        2,
        2,
    )
    assert there["default"] is True
    assert sum(row["videos"] for row in there["token_p99_histogram"]) + there["exact"] == 2
    assert all(row["low"] < row["high"] for row in there["token_p99_histogram"])
    assert found["evaluations"][0]["hit_rate"] == 7 / 8
    assert found["coverage"][-1] == {
        "dataset": "demo",
        "total": 2,
        "videos": 1,
        "failures": 0,
        "missing": ["c"],
    }
    assert not (tmp_path / "report.html").exists()


def test_what_cannot_be_done_is_said(words, tmp_path):
    (tmp_path / "cache" / "gone").mkdir()
    (tmp_path / "cache" / "gone" / "lock.mdb").touch()
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0
    assert done.stderr.startswith("not in it: gone: ")
    nowhere = CliRunner().invoke(main, [*words, "-o", "no/page.html"])
    assert nowhere.exit_code == 1
    assert "no/page.html cannot be written: No such file or directory" in nowhere.stderr
    (tmp_path / "run 1.json").write_text("{}")
    assert "is not a file of statistics" in CliRunner().invoke(main, words).stderr
    assert CliRunner().invoke(main, ["report", "--cache-dir", "c", "--list", "demo"]).exit_code == 2
    assert (
        "there is no store in c" in CliRunner().invoke(main, ["report", "--cache-dir", "c"]).stderr
    )
