"""featstore's commands where stdout or stderr is closed, full or read by nobody."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from toys import python_env, store_videos, toy_features

import featstore

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.fixture
def stored(tmp_path) -> Path:
    store_videos(tmp_path / "cache", "demo", {"a": toy_features(1)})
    return tmp_path / "cache"


def in_a_shell(words: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-c", f"{sys.executable} -m featstore {words}"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("stderr", ["2> >(head -c 1 >/dev/null)", "2>/dev/full", "2>&-"])
def test_an_ingest_goes_on_where_its_progress_cannot_be_printed(sample_clips, tmp_path, stderr):
    words = f"ingest --encoder toy --videos {sample_clips} --dataset demo --cache-dir {tmp_path} --min-free 1MB"
    done = in_a_shell(f"{words} --nframe 6 --decode-workers 1 {stderr}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("demo: 3 stored")
    assert len(featstore.open(tmp_path)["demo"]) == 3


def test_results_that_cannot_be_written_are_one_line_and_exit_code_1(stored):
    for words in ("ls --json", "info"):
        done = in_a_shell(f"{words} --cache-dir {stored} >/dev/full")
        said = "featstore: the output cannot be written: No space left on device\n"
        assert (done.returncode, done.stderr) == (1, said)


@pytest.mark.parametrize("words", [["ls", "--json"], ["info"], ["--help"], ["ls", "--help"]])
def test_results_that_nobody_reads_end_a_command_as_they_end_other_programs(stored, words):
    """As in a pipe to `head`, after which a shell with pipefail tells this apart from an error."""
    reading, writing = os.pipe()
    os.close(reading)
    at = [] if "--help" in words else ["--cache-dir", stored]
    done = subprocess.run(
        [sys.executable, "-m", "featstore", *words, *at],
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
        timeout=120,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")


def test_a_closed_stdout_is_no_error(stored):
    done = in_a_shell(f"ls --cache-dir {stored} >&-")
    assert (done.returncode, done.stderr) == (0, "")


def test_an_error_keeps_its_exit_code_where_it_cannot_be_printed(tmp_path):
    done = in_a_shell(f"ls --cache-dir {tmp_path / 'nowhere'} 2>/dev/full")
    assert done.returncode == 1


def test_a_line_of_progress_has_a_line_of_its_own_beside_the_bar_of_a_terminal(
    sample_clips, tmp_path
):
    terminal, its_end = pty.openpty()
    words = f"ingest --encoder toy --videos {sample_clips} --dataset demo --cache-dir {tmp_path} --min-free 1MB"
    with subprocess.Popen(
        [sys.executable, "-m", "featstore", *words.split(), "--nframe", "6"],
        stdout=subprocess.DEVNULL,
        stderr=its_end,
        env=python_env() | {"TERM": "xterm"},
    ) as process:
        os.close(its_end)
        shown = b""
        with contextlib.suppress(OSError):  # the terminal's other end is closed
            while portion := os.read(terminal, 4096):
                shown += portion
    os.close(terminal)
    assert process.returncode == 0
    pieces = re.split(r"[\r\n]|\x1b\[[0-9;?]*[A-Za-z]", shown.decode())
    assert next(piece for piece in pieces if "videos to ingest" in piece).startswith(
        "demo: 3 videos"
    )
