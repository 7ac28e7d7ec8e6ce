"""`featstore status`."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from click.testing import CliRunner

import featstore
from featstore.cli import main
from featstore.encoders.toy import ToyEncoder
from featstore.pipeline.summary import IngestSummary
from featstore.pipeline.write.heartbeat import (
    FailedVideo,
    Heartbeat,
    ShareStatus,
    pack_status,
    read_statuses,
)
from featstore.records.storage import Storage
from featstore.sampling import Sampling
from featstore.spec import FeatureSpec
from featstore.store.shards.places import LocalPlace


@pytest.fixture
def status(tmp_path):
    """Show what two shares said of themselves, both long ago."""
    failed = [FailedVideo("b", "/v/b.mp4", "/v/b.mp4: no frame")]
    place = LocalPlace(tmp_path / "cache")
    for said in (
        ShareStatus("0-of-2", "done", 100, 99, 90, 1, 5, 0.0, 10.0, "node-1", failures=failed),
        ShareStatus("1-of-2", "running", 50, 10, 10, 0, 5, 0.0, 10.0, "node-2"),
    ):
        place.put(f"demo/shards/status/{said.share}.json", pack_status(said))

    def run(*more, dataset="demo"):
        words = ["status", "--cache-dir", place.where, *(["--dataset", dataset] if dataset else [])]
        done = CliRunner().invoke(main, [*words, *map(str, more)])
        done.cache = place.where
        return done

    return run


def test_each_share_has_a_row_and_all_of_them_a_sentence(status):
    done = status()
    assert done.exit_code == 0, done.output
    head, *rows = done.stdout.splitlines()
    names = ["share", "state", "videos", "stored", "failed", "left", "videos/s"]
    assert head.split() == [*names, "host", "seen"]
    assert rows[0].split()[:8] == ["0-of-2", "done", "100", "99", "1", "0", "9.10", "node-1"]
    assert rows[1].split()[:3] == ["1-of-2", "running,", "silent"]
    assert rows[2] == "demo: 109 of 150 videos stored, 1 failed, 10 B written"
    assert "  failed: 1 x no frame" in rows
    assert rows[-2].startswith("  silent for more than a minute: 1-of-2; ")
    assert rows[-1].endswith(f" free in {done.cache}")


def test_without_a_name_all_datasets_are_shown_and_with_watch_again_and_again(status, monkeypatch):
    looks = iter([None])

    def sleep(seconds):
        if next(looks, seconds):
            raise KeyboardInterrupt

    monkeypatch.setattr("featstore.cli.status.time.sleep", sleep)
    done = status("--watch", dataset=None)
    assert done.exit_code == 0, done.output
    assert done.stdout.count("demo: 109 of 150 videos stored") == 2


def test_a_cache_without_an_ingest_says_so(status):
    done = status(dataset="other")
    assert (done.exit_code, done.stdout) == (0, f"no ingest of other is known in {done.cache}\n")
    assert json.loads(status("--json", dataset="other").stdout) == []


def test_an_ingest_says_nothing_before_it_may_write(tmp_path):
    """Another one may be at work, and what it says stays."""
    spec = FeatureSpec(ToyEncoder().identity, Sampling(4), "auto", ToyEncoder().preprocessing)
    summary = IngestSummary("demo", spec, Storage(), 3, 2, 0, 0, [], 0)
    place = LocalPlace(tmp_path)
    with Heartbeat(place, "demo") as heartbeat:
        heartbeat.watch(summary)
        assert not [*tmp_path.iterdir()]
        summary.begun = True  # before a video is decoded
        while not (tmp_path / "demo/status.json").exists():
            time.sleep(0.02)
        assert [said.state for said in read_statuses(place, "demo")[0]] == ["starting"]
        summary.busy["decode"], summary.stored = 1.0, 3
        heartbeat.finish(summary)
    [said], _ = read_statuses(place, "demo")
    assert (said.state, said.videos, said.stored, said.new, said.left) == ("done", 5, 5, 3, 0)
    assert said.share == "ingest"


def test_an_ingest_of_python_is_shown_too(sample_clips, tmp_path):
    """Only the command wrote a status."""
    options = featstore.IngestOptions(min_free=0, workers=1, limit=1)
    sampling = Sampling(2)
    featstore.ingest(
        sample_clips, tmp_path, "demo", encoder=ToyEncoder(), sampling=sampling, options=options
    )
    [said], _ = read_statuses(LocalPlace(tmp_path), "demo")
    assert (said.state, said.new, said.share) == ("done", 1, "ingest")


def test_the_time_to_start_does_not_count_for_the_pace():
    said = ShareStatus("ingest", "running", 50, 11, 11, started=0.0, time=30.0, paced=(10, 5.0))
    assert said.rate == 2.0
    assert replace(said, paced=(2, 5.0)).rate == 11 / 30  # too few to tell


def test_what_failed_is_written_as_a_manifest_or_the_command_says_why_not(status, tmp_path):
    assert status("--failed", tmp_path / "failed.jsonl").exit_code == 0
    (line,) = (tmp_path / "failed.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "video_id": "b",
        "path": "/v/b.mp4",
        "reason": "/v/b.mp4: no frame",
    }
    done = status("--failed", tmp_path / "none" / "failed.jsonl")
    assert done.exit_code == 1
    assert done.stderr.endswith("No such file or directory; choose another --failed\n")
