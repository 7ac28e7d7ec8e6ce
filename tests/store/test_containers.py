"""Two containers on one store: process numbers mean nothing there, and LMDB goes by them."""

import subprocess
import sys
from pathlib import Path

import pytest
from toys import python_env, store_videos, toy_features

from featstore.store.paths import SEAL_FILE

HOLD = """
import sys, featstore
features = featstore.get(sys.argv[1], "demo", "a")
print("ready", flush=True)
sys.stdin.readline()
assert features.dequantize().any()
"""
LOOK = """
import os, sys, featstore
try:
    featstore.get(sys.argv[1], "demo", "a")
except featstore.StoreError as exc:
    print(os.getpid(), exc)
else:
    print(os.getpid(), "read")
"""


def in_a_container(program: str, cache: Path) -> subprocess.Popen[str]:
    """Start a program as the first process of a PID namespace of its own."""
    return subprocess.Popen(
        ["unshare", "--pid", "--fork", sys.executable, "-c", program, str(cache)],
        env=python_env(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def holder(cache):
    store_videos(cache, "demo", {"a": toy_features(1)})
    try:
        holding = in_a_container(HOLD, cache)
    except OSError as exc:
        pytest.skip(f"no PID namespaces here: {exc}")
    if holding.stdout.readline() != "ready\n":
        holding.kill()
        holding.communicate()
        pytest.skip("no PID namespaces here")
    yield holding
    holding.communicate("go\n", timeout=30)
    assert holding.returncode == 0


def look(cache: Path) -> str:
    return in_a_container(LOOK, cache).communicate(timeout=60)[0]


def test_a_process_of_the_same_number_elsewhere_is_told_apart_in_words(cache, holder):
    said = look(cache)
    assert said.startswith("1 ")
    assert "a process that has this one's number, 1, in another container is at work" in said
    assert "docker run --pid=host" in said


@pytest.mark.slow
def test_a_sealed_dataset_is_read_from_any_number_of_containers(cache):
    store_videos(cache, "demo", {"a": toy_features(1)})
    (cache / "demo" / SEAL_FILE).touch()
    said = {look(cache) for _ in range(2)}
    assert said <= {"1 read\n", ""}, "empty where there are no PID namespaces"
