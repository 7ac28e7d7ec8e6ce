"""Kill real ingests at random moments: no committed video is lost, no half video visible, the next run completes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toys import children_of

from featstore.store.maintenance.check import check_dataset
from featstore.store.paths import DATA_FILE
from featstore.store.reader import FeatureStore

pytestmark = pytest.mark.crash
KILLS = 5  # of each victim; tools/drill.py crash does more
VIDEOS = 24


def command(videos: Path, cache: Path, *more: str) -> list[str]:
    options = {"--videos": videos, "--cache-dir": cache, "--dataset": "demo", "--nframe": 4}
    words = [str(word) for pair in options.items() for word in pair]
    return [
        sys.executable,
        "-m",
        "featstore",
        "ingest",
        "--encoder",
        "toy",
        "--min-free",
        "1MB",
        *words,
        *more,
    ]


def start(videos: Path, cache: Path, *more: str) -> subprocess.Popen:
    log, words = subprocess.DEVNULL, command(videos, cache, *more)
    return subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)


def stored(cache: Path) -> dict[str, int]:
    if not (cache / "demo" / DATA_FILE).exists():
        return {}
    try:
        dataset = FeatureStore(cache)["demo"]
    except Exception as exc:
        if "no featstore" in str(exc):  # killed before the first commit
            return {}
        raise
    return {name: dataset[name].header.payload_xxh3 for name in dataset}


@pytest.fixture
def videos(sample_clips: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for i in range(VIDEOS):
        shutil.copy(sample_clips / "blink.mp4", folder / f"v{i:02}.mp4")
    return folder


@pytest.mark.parametrize("victim", ["everything", "writer"])
def test_a_kill_at_any_moment_loses_no_committed_video(videos, cache, victim):
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    before: dict[str, int] = {}
    for _ in range(KILLS):
        process = start(videos, cache)
        time.sleep(rng.uniform(0.2, 1.6))
        writers = children_of(process.pid, "featstore.pipeline.write.writer_process")
        if victim == "everything":
            process.kill()
        for pid in writers:
            os.kill(pid, signal.SIGKILL)
        process.wait(60)
        now = stored(cache)
        assert before.items() <= now.items()
        if now:
            assert check_dataset(cache, "demo").problems == []
        before = now
    assert subprocess.run(command(videos, cache), check=False, capture_output=True).returncode == 0
    assert len(stored(cache)) == VIDEOS
    assert before.items() <= stored(cache).items()


@pytest.mark.parametrize("module", ["decoding.worker", "pipeline.encode.encoder_process"])
def test_decoders_and_encoders_die_with_their_parent(videos, cache, module):
    process = start(videos, cache, "--device", "cpu,cpu")
    deadline = time.monotonic() + 30
    workers: list[int] = []
    while not workers and time.monotonic() < deadline:
        workers = children_of(process.pid, f"featstore.{module}")
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert workers
    while time.monotonic() < deadline and children_of(process.pid, f"featstore.{module}"):
        time.sleep(0.05)
    assert children_of(process.pid, f"featstore.{module}") == []


@pytest.mark.parametrize(
    ("number", "devices"),
    [(signal.SIGINT, "cpu"), (signal.SIGTERM, "cpu,cpu"), (signal.SIGHUP, "cpu")],
)
def test_an_interrupt_ends_with_130_and_the_same_command_goes_on(videos, cache, number, devices):
    words = command(videos, cache, "--device", devices)
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # under nohup it is ignored
    )
    assert process.stderr is not None
    process.stderr.readline()  # the plan is out: work begins
    time.sleep(0.3)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "demo:" in out
    first = stored(cache)
    assert json.loads((cache / "cache_meta.json").read_text())["videos"] == len(first)
    assert subprocess.run(command(videos, cache), check=False, capture_output=True).returncode == 0
    assert first.items() <= stored(cache).items()
    assert len(stored(cache)) == VIDEOS


def test_memory_in_flight_does_not_outlive_a_kill(videos, cache):
    process = start(videos, cache)
    time.sleep(1.0)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list(Path("/dev/shm").glob("featstore*")) == []
