"""torch and forks: none while a thread of ours computes, one thread in the child, and not with the parent's CUDA.

MKL keeps its buffers behind a lock of its own. A child that is forked while another thread holds it waits at its first
matrix product for good: of children forked while threads encoded one in nine did. So a fork waits for them.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from featstore.errors import FeatstoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST_WAIT = 60.0  # seconds that a fork waits: it must not hang on a thread that waits for the one that forks

_computed = False
_turn = threading.Condition()
_inside = 0  # threads that compute
_forking = 0  # threads that are about to fork
_mine = threading.local()


def about_to_compute(device: torch.device) -> None:
    """Note that torch computes on `device` in this process; raise FeatstoreError where it cannot after a fork."""
    global _computed
    if device.type == "cuda" and torch.cuda._is_in_bad_fork():
        raise FeatstoreError(
            f"this process was forked from one that used CUDA, and cannot compute on {device}: start processes with "
            "multiprocessing's spawn, or fork before the first model is loaded and load one in each"
        )
    _computed = True


@contextmanager
def computing(device: torch.device) -> Iterator[None]:
    """Compute on `device` inside, and let no other thread fork meanwhile."""
    global _inside
    about_to_compute(device)
    if device.type == "cuda" or _own():  # a child could do nothing with the parent's GPU
        yield
        return
    with _turn:
        _turn.wait_for(lambda: not _forking)
        _inside += 1
    _mine.inside = 1
    try:
        yield
    finally:
        _mine.inside = 0
        with _turn:
            _inside -= 1
            _turn.notify_all()


def _own() -> int:
    return getattr(_mine, "inside", 0)


def _wait_for_others() -> None:
    global _forking
    _turn.acquire()  # and kept, so that none begins, until the fork is done
    _forking += 1
    _turn.wait_for(lambda: _inside == _own(), LONGEST_WAIT)


def _let_others_go_on() -> None:
    global _forking
    _forking -= 1
    _turn.notify_all()
    _turn.release()


def _begin_alone() -> None:
    global _turn, _inside, _forking
    _turn, _inside, _forking = threading.Condition(), _own(), 0
    # The parent's OpenMP threads are not in the child, and libgomp waits for them for good; torch's DataLoader does
    # the same in its workers.
    if _computed:
        torch.set_num_threads(1)


os.register_at_fork(
    before=_wait_for_others, after_in_parent=_let_others_go_on, after_in_child=_begin_alone
)
