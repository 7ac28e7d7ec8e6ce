"""Child processes: whose end is theirs too."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from toys import children_of, run_python, start_python

from featstore.decoding.worker import MODULE
from featstore.system.processes import Slots, WorkerProcess

pytestmark = pytest.mark.slow

# A decoder started by a thread: that of the program, or another, which has ended when its number is told.
START = """
import os, sys, tempfile, threading, time
from featstore.system.processes import Slots, WorkerProcess
from featstore.decoding.worker import MODULE, DecodeResult, DecodeSetup, DecodeTask
from featstore.preprocessing import ShortestEdgeCrop
from featstore.sampling import Sampling

slots = Slots.create(1, 4096)
square = ShortestEdgeCrop(shortest_edge=32, crop_height=32, crop_width=32)
setup = DecodeSetup(slots, Sampling(4), square, 1 << 30, "auto")
log = tempfile.TemporaryFile()
children = []

def start():
    child = WorkerProcess(MODULE, setup, [slots], log)
    child.send(DecodeTask(1, "/no/such/file", 0))
    assert child.receive(DecodeResult).error  # it has asked the system by now to end with its parent
    children.append(child)

if sys.argv[1] == "thread":
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
else:
    start()
"""
LIVE_ON = """
print(children[0].process.pid, flush=True)
time.sleep(600)
"""
FORK = """
import warnings
warnings.simplefilter("ignore")  # newer Pythons warn of forking with threads, which is what is tried here
pid = os.fork()
if not pid:
    thread = threading.Thread(target=start)
    thread.start()
    thread.join(30)
    children[-1].kill()
    os._exit(0 if len(children) == 2 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
children[0].kill()
"""


@pytest.mark.parametrize("starter", ["main", "thread"])
def test_a_child_that_cannot_run_ends_with_its_parent_whichever_thread_started_it(starter):
    """A decoder that hangs looks at nothing: not at its pipe, nor whether its parent is there."""
    parent = start_python(START + LIVE_ON, starter)
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        time.sleep(0.3)
        assert children_of(parent.pid, MODULE) == [child]
        os.kill(child, signal.SIGSTOP)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
        parent.stdin.close()
    deadline = time.monotonic() + 10
    while children_of(parent.pid, MODULE) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert children_of(parent.pid, MODULE) == []


def test_a_program_that_cannot_be_started_is_an_error_in_any_thread(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    slots = Slots.create(1, 4096)
    with tempfile.TemporaryFile() as log, ThreadPoolExecutor(1) as threads:
        for call in (
            WorkerProcess,
            lambda *words: threads.submit(WorkerProcess, *words).result(),
        ):
            with pytest.raises(FileNotFoundError):
                call(MODULE, slots, [slots], log)
    slots.close()


def test_a_forked_process_starts_children_from_its_threads_too():
    """The thread that starts them is not there after a fork."""
    done = run_python(START + FORK, "thread")
    assert (done.stdout, done.returncode) == ("0\n", 0), done.stderr
