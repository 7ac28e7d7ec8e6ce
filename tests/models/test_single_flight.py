"""One process makes a video's features, the others wait for it: with real processes, killed ones too."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from toys import python_env

from featstore.errors import StoreError, StoreNotFound
from featstore.store.engine.locks import single_flight_lock
from featstore.store.paths import FLIGHT_LOCK_FILE

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.race

WAIT = 60.0

HOLD = """
import sys, time
from pathlib import Path
from featstore.store.engine.locks import single_flight_lock
folder, key, mark = sys.argv[1:]
with single_flight_lock(Path(folder), key.encode()):
    Path(mark).touch()
    time.sleep(600)
"""

# A model's feature source, with the toy encoder in place of LongVA's: it notes each video it encodes.
ASK = """
import json, sys, time
from pathlib import Path
import torch
from featstore.decoding.video_file import DECODER
from featstore.encoders.toy import ToyEncoder
from featstore.models.lookup import FeatureRequest
from featstore.models.source import FeatureSource
from featstore.models.source_options import SourceOptions
from featstore.models.statistics import CacheStatistics
from featstore.sampling import Sampling
from featstore.spec import FeatureSpec

cache_dir, path, notes, seconds = sys.argv[1:]

class SlowEncoder(ToyEncoder):
    def encode(self, frames):
        with open(notes, "a") as file:
            file.write("encoding\\n")
        time.sleep(float(seconds))
        return super().encode(frames)

encoder, statistics = SlowEncoder(), CacheStatistics()
source = FeatureSource(
    encoder, SourceOptions(cache_dir, decode_timeout=60), device=torch.device("cpu"),
    dtype=torch.float32, statistics=statistics,
)
spec = FeatureSpec(encoder.identity, Sampling(4), DECODER, encoder.preprocessing)
visual = source.get(FeatureRequest("demo", "blink", path, spec))
total = float(visual.load().double().sum())
source.close()
print(json.dumps({"hits": statistics.hits, "misses": statistics.misses, "sum": total}))
"""


@pytest.fixture
def start():
    """Start programs that are gone when the test is."""
    running = []

    def run(program, *arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=python_env(),
        )
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + WAIT
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} never came"
        time.sleep(0.02)


def answer(process):
    out, err = process.communicate(timeout=WAIT)
    assert process.returncode == 0, err
    return json.loads(out)


def test_another_process_waits_until_the_holder_is_killed(start, tmp_path):
    holder = start(HOLD, tmp_path, "video", tmp_path / "first")
    wait_for(tmp_path / "first")
    start(HOLD, tmp_path, "video", tmp_path / "second")
    other = start(HOLD, tmp_path, "another video", tmp_path / "third")
    wait_for(tmp_path / "third")  # by now the second would have come, too
    assert not (tmp_path / "second").exists()
    holder.send_signal(signal.SIGKILL)
    wait_for(tmp_path / "second")
    assert other.poll() is None


def test_threads_of_one_process_wait_for_each_other(tmp_path):
    inside, order = threading.Event(), []

    def second():
        with single_flight_lock(tmp_path, b"video"):
            order.append("second")

    with single_flight_lock(tmp_path, b"video"):
        thread = threading.Thread(target=second)
        thread.start()
        inside.wait(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_nothing_is_written_to_the_locks_file(tmp_path):
    with single_flight_lock(tmp_path, b"video"), single_flight_lock(tmp_path, b"another video"):
        assert (tmp_path / FLIGHT_LOCK_FILE).stat().st_size == 0


def test_systems_without_such_locks_lock_the_file(tmp_path, monkeypatch):
    monkeypatch.delattr("fcntl.F_OFD_SETLKW")
    with single_flight_lock(tmp_path, b"video"):
        pass
    with single_flight_lock(tmp_path, b"video"):  # released
        pass


def test_a_folder_that_was_removed_meanwhile_is_made_again(tmp_path):
    folder, gone = tmp_path / "demo", tmp_path / "gone"
    folder.mkdir()
    entered = threading.Event()

    def wait_inside():
        with single_flight_lock(folder, b"video"):
            entered.set()

    with single_flight_lock(folder, b"video"):
        thread = threading.Thread(target=wait_inside)
        thread.start()
        time.sleep(0.2)
        folder.rename(gone)
    thread.join()
    assert entered.is_set()
    assert (folder / FLIGHT_LOCK_FILE).exists()


def test_a_lock_that_cannot_be_had_says_so(tmp_path):
    with pytest.raises(StoreNotFound), single_flight_lock(tmp_path / "nowhere", b"video"):
        pass
    (tmp_path / FLIGHT_LOCK_FILE).mkdir()
    with (
        pytest.raises(StoreError, match="cannot be locked"),
        single_flight_lock(tmp_path, b"video"),
    ):
        pass


def test_of_three_processes_that_miss_a_video_one_encodes_it(start, clips, cache, tmp_path):
    notes = tmp_path / "notes"
    asking = [start(ASK, cache, clips / "blink.mp4", notes, 1.0) for _ in range(3)]
    answers = [answer(process) for process in asking]
    assert sorted((a["hits"], a["misses"]) for a in answers) == [(0, 1), (1, 0), (1, 0)]
    assert len({a["sum"] for a in answers}) == 1
    assert notes.read_text() == "encoding\n"


def test_when_the_one_that_encodes_is_killed_another_takes_over(start, clips, cache, tmp_path):
    first_notes, notes = tmp_path / "first", tmp_path / "notes"
    owner = start(ASK, cache, clips / "blink.mp4", first_notes, 600)
    wait_for(first_notes)
    waiting = start(ASK, cache, clips / "blink.mp4", notes, 0)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(4)
    assert not notes.exists()
    owner.send_signal(signal.SIGKILL)
    found = answer(waiting)
    assert (found["hits"], found["misses"]) == (0, 1)
    assert notes.exists()
