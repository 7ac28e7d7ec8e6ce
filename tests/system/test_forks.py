"""Forks in the middle of what another thread does: the child can go on."""

from __future__ import annotations

import ast
import os
import signal
import threading
import warnings
from dataclasses import dataclass

import pytest
from toys import REPOSITORY, run_python

from featstore.system.forks import cached_property

PACKAGE = REPOSITORY / "featstore"


@dataclass(frozen=True)
class Slow:
    name: str
    entered: threading.Event
    leave: threading.Event

    @cached_property
    def value(self) -> list[str]:
        """Return a new list."""
        self.entered.set()
        assert self.leave.wait(60)
        return [self.name]


def slow(name):
    return Slow(name, threading.Event(), threading.Event())


def forked(run):
    """Return the exit code of a child that forked here and called `run`; negative if it hung."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of what is tried here
        pid = os.fork()
    if pid == 0:
        signal.alarm(10)  # ends it
        os._exit(0 if run() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.race
def test_a_child_forked_while_a_thread_computes_a_property_reads_that_of_another_instance():
    held, other = slow("held"), slow("other")
    other.leave.set()
    thread = threading.Thread(target=lambda: held.value)
    thread.start()
    try:
        assert held.entered.wait(60)
        assert forked(lambda: other.value == ["other"]) == 0
    finally:
        held.leave.set()
        thread.join()
    assert held.value == ["held"]


def test_a_property_is_computed_once_and_threads_that_meet_get_one_value():
    thing, found = slow("thing"), []
    threads = [threading.Thread(target=lambda: found.append(thing.value)) for _ in range(2)]
    for thread in threads:
        thread.start()
    thing.leave.set()
    for thread in threads:
        thread.join()
    thing.leave.clear()  # computing again would wait, and fail
    assert found[0] is found[1] is thing.value
    assert Slow.value.__doc__ == "Return a new list."


def test_the_package_uses_no_cached_property_with_a_lock():
    locked = [
        path.relative_to(PACKAGE).as_posix()
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (
            (isinstance(node, ast.ImportFrom) and node.module == "functools")
            and any(alias.name == "cached_property" for alias in node.names)
        )
        or (
            (isinstance(node, ast.Attribute) and node.attr == "cached_property")
            and ast.unparse(node) == "functools.cached_property"
        )
    ]
    assert locked == []


LAZY = """
import os, signal, sys, threading, warnings
from importlib import import_module
face, name, module = sys.argv[1:]
face = import_module(face)
main, entered, leave = threading.current_thread(), threading.Event(), threading.Event()

class Gate:
    def find_spec(self, name, path=None, target=None):
        if name == module and threading.current_thread() is not main:
            entered.set()
            leave.wait()

assert module not in sys.modules
sys.meta_path.insert(0, Gate())
threading.Thread(target=getattr, args=(face, name)).start()
entered.wait()
sys.setswitchinterval(60)  # the thread goes on when this one waits, not before
os.register_at_fork(before=leave.set)  # registered last, called first
warnings.simplefilter("ignore")  # newer Pythons warn of what is tried here
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    os._exit(0 if getattr(face, name) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.race
@pytest.mark.parametrize(
    ("face", "name", "module"),
    [
        ("featstore", "FeatureSpec", "featstore.spec"),
        ("featstore", "encoders", "featstore.encoders"),
        ("featstore.encoders", "ToyEncoder", "featstore.encoders.toy"),
        ("featstore.integrations.vlmevalkit", "video_id", "featstore.integrations.benchmarks"),
        ("featstore.models", "CacheStatistics", "featstore.models.statistics"),
        ("featstore.store", "DatasetSnapshot", "featstore.store.shards.base"),
    ],
)
def test_a_child_forked_while_a_thread_imports_a_public_name_can_import_it(face, name, module):
    done = run_python(LAZY, face, name, module)
    assert done.stdout == "0\n", done.stderr
