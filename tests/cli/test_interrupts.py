"""Real interrupts of real processes: the exit code says so, nobody is left behind, and nothing is a traceback."""

from __future__ import annotations

import configparser
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from toys import REPOSITORY, children_of, python_env, store_videos, toy_features

from featstore.store.maintenance.check import check_dataset
from featstore.store.paths import dataset_names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.crash
INTERRUPTED = 130
MODULES = (
    "decoding.worker",
    "pipeline.write.writer_process",
    "pipeline.encode.encoder_process",
)

# An encoder that torch keeps busy for seconds; it is told when the main thread has come to wait for it.
SLOW = """
import sys, threading, time, torch
from featstore.encoders.toy import ToyEncoder

def watch(main=threading.get_ident()):
    frame = None
    while frame is None:
        time.sleep(0.01)
        frame = sys._current_frames()[main]
        while frame and not (frame.f_code.co_name == "close" and "encoder_workers" in frame.f_code.co_filename):
            frame = frame.f_back
    print("waiting", file=sys.stderr, flush=True)

def encode(self, frames, encode=ToyEncoder.encode):
    print("encoding", file=sys.stderr, flush=True)
    until = time.monotonic() + 4
    x = torch.randn(1000, 1000)
    while time.monotonic() < until:
        torch.nn.functional.gelu(x @ x @ x @ x @ x)
    return encode(self, frames)

ToyEncoder.encode = encode
threading.Thread(target=watch, daemon=True).start()
"""
COMMAND = """
from featstore.__main__ import run
run()
"""
LIBRARY = """
import featstore
videos, cache = sys.argv[1:]
featstore.ingest(videos, cache, "demo", encoder=ToyEncoder(), sampling=featstore.Sampling(4),
                 options=featstore.IngestOptions(min_free=0))
"""


@pytest.fixture
def videos(sample_clips: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for i in range(16):
        shutil.copy(sample_clips / "blink.mp4", folder / f"v{i:02}.mp4")
    return folder


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes to be gone at the end, whatever became of the test."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def start(started):
    def start(
        *words: object, ignored: signal.Signals | None = None, cwd: Path | None = None
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *map(str, words)],
            env=python_env(),
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=ignored and (lambda: signal.signal(ignored, signal.SIG_IGN)),
        )
        started.append(process)
        return process

    return start


def ingest(videos: Path, cache: Path) -> list[object]:
    words = ["ingest", "--encoder", "toy", "--videos", videos, "--cache-dir", cache]
    return [*words, "--dataset", "demo", "--nframe", 4, "--min-free", "1MB"]


def read_until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return
    pytest.fail(f"it ended and never said {text!r}")


def wait_until_gone(pid: int, *modules: str) -> None:
    deadline = time.monotonic() + 30
    while any(children_of(pid, f"featstore.{module}") for module in modules):
        assert time.monotonic() < deadline, "a child process was left behind"
        time.sleep(0.01)


def interrupt(process: subprocess.Popen[str], to: str) -> None:
    """To the process alone, or as a terminal does it: to its whole group."""
    (os.killpg if to == "group" else os.kill)(process.pid, signal.SIGINT)


@pytest.mark.parametrize("to", ["process", "group"])
def test_a_second_interrupt_ends_an_ingest_at_once_while_torch_is_at_work(start, videos, cache, to):
    process = start("-c", SLOW + COMMAND, *ingest(videos, cache))
    read_until(process, "encoding")
    interrupt(process, to)
    read_until(process, "waiting")
    interrupt(process, to)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (INTERRUPTED, "")
    wait_until_gone(process.pid, *MODULES)


def test_an_interrupted_program_waits_for_torch_and_is_not_aborted(start, videos, cache):
    process = start("-c", SLOW + LIBRARY, videos, cache)
    read_until(process, "encoding")
    interrupt(process, "process")
    read_until(process, "waiting")
    interrupt(process, "process")
    _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert "terminate called" not in said
    wait_until_gone(process.pid, *MODULES)


@pytest.mark.parametrize(("to", "device"), [("process", "cpu"), ("group", "cpu,cpu")])
def test_two_interrupts_at_any_moment_leave_nobody_and_no_traceback(
    start, videos, cache, to, device
):
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(4):
        process = start("-m", "featstore", *ingest(videos, cache), "--device", device)
        read_until(process, " to ingest")  # the last may be one video
        time.sleep(rng.uniform(0, 1.5))
        interrupt(process, to)
        time.sleep(rng.uniform(0, 0.2))
        interrupt(process, to)
        _, said = process.communicate(timeout=60)
        assert process.returncode in (0, INTERRUPTED), said  # 0: all was done
        assert "Traceback" not in said
        wait_until_gone(process.pid, *MODULES)
        if dataset_names(cache):
            assert check_dataset(cache, "demo").problems == []


def test_a_hangup_that_is_ignored_stays_ignored(start, videos, cache):
    """As under nohup."""
    process = start("-m", "featstore", *ingest(videos, cache), ignored=signal.SIGHUP)
    read_until(process, "videos to ingest")
    process.send_signal(signal.SIGHUP)
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, said[:15]) == (0, "demo: 16 stored")


@pytest.mark.parametrize(
    "imported", ["click._compat", "click.core", "featstore.cli.ingest", "featstore.cli", "numpy"]
)
def test_an_interrupt_while_modules_are_imported_is_no_traceback(start, videos, cache, imported):
    """Through the entry point that the installed command has; the interpreter tells what it has imported."""
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    script = setup["options.entry_points"]["console_scripts"].partition("=")[2].strip()
    module, _, function = script.partition(":")
    program = f"from {module} import {function}; {function}()"
    process = start("-X", "importtime", "-c", program, *ingest(videos, cache))
    read_until(process, f" {imported}\n")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED, said
    assert "Traceback" not in said
    assert "Exception ignored" not in said


# The work of a command, again and again until it is interrupted.
AT_WORK = """
import importlib, sys
module, name, *words = sys.argv[1:]
module = importlib.import_module(module)
work = getattr(module, name)

def at_work(*words, **options):
    print("at work", file=sys.stderr, flush=True)
    while True:
        done = work(*words, **options)
        if "stop" in options and options["stop"].is_set():
            return done

setattr(module, name, at_work)
sys.argv[1:] = words
"""
WORK = {
    "check": "featstore.store.maintenance.check check_dataset",
    "compact": "featstore.store.maintenance.compact compact_dataset",
    "merge": "featstore.store.maintenance.merge merge_dataset",
}


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("command", WORK)
def test_maintenance_is_interrupted_and_leaves_a_sound_store(
    start, cache, tmp_path, command, times
):
    store_videos(cache, "demo", {f"v{i}": toy_features(i) for i in range(20)})
    shutil.copytree(cache, tmp_path / "other")
    words = [command, *([tmp_path / "other"] if command == "merge" else [])]
    words += ["--cache-dir", cache, "--dataset", "demo"]
    words += ["--min-free", "1MB"] if command == "merge" else []
    process = start("-c", AT_WORK + COMMAND, *WORK[command].split(), *words)
    read_until(process, "at work")
    for _ in range(times):
        interrupt(process, "group")
    _, said = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED, said
    assert "Traceback" not in said


IN_TEXT = """
import featstore.store.maintenance.check

def check_dataset(*words, **options):
    exec("raise KeyboardInterrupt")

featstore.store.maintenance.check.check_dataset = check_dataset
"""


def test_an_interrupt_in_code_made_of_text_ends_with_the_same_code(start, cache, tmp_path):
    """As in the making of a dataclass: after it, `python -m` itself would end by the signal."""
    store_videos(cache, "demo", {"a": toy_features(1)})
    (tmp_path / "program.py").write_text(IN_TEXT + COMMAND)
    process = start("-m", "program", "check", "--cache-dir", cache, cwd=tmp_path)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (INTERRUPTED, "featstore: interrupted\n")


def test_an_interrupt_once_the_command_is_done_changes_nothing(cache):
    """While the interpreter takes itself apart the signal's default would end it by the signal."""
    store_videos(cache, "demo", {"a": toy_features(1)})
    rng = random.Random(0)
    codes = set()
    for _ in range(8):
        with subprocess.Popen(
            [sys.executable, "-m", "featstore", "ls", "--cache-dir", cache],
            stdout=subprocess.PIPE,
            env=python_env(),
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.uniform(0, 0.08))
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        codes.add(process.returncode)
    assert codes <= {0, INTERRUPTED}
