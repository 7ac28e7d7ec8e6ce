"""`featstore status`."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from featstore.cli import main
from featstore.pipeline.cluster.heartbeat import FailedVideo, ShareStatus, pack_status
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

    def run(*more):
        words = ["status", "--cache-dir", str(tmp_path / "cache"), "--dataset", "demo"]
        return CliRunner().invoke(main, [*words, *map(str, more)])

    return run


def test_each_share_has_a_row_and_all_of_them_a_sentence(status):
    done = status()
    assert done.exit_code == 0, done.output
    head, *rows = done.stdout.splitlines()
    names = ["share", "state", "videos", "stored", "failed", "left", "videos_per_second"]
    assert head.split() == [*names, "host", "seen"]
    assert rows[0].split()[:8] == ["0-of-2", "done", "100", "99", "1", "0", "9.10", "node-1"]
    assert rows[1].split()[:3] == ["1-of-2", "running,", "silent"]
    assert rows[2] == "demo: 109 of 150 videos stored, 1 failed, 10 B by these processes"
    assert "  failed: 1 x no frame" in rows
    assert rows[-1].startswith("  silent for more than a minute: 1-of-2; ")


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
