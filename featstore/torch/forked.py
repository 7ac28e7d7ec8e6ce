"""torch and forks: none while a thread of ours computes, one thread in the child, and not with the parent's CUDA.

MKL keeps its buffers behind a lock of its own. A child that is forked while another thread holds it waits at its first
matrix product for good: of children forked while threads encoded one in nine did. So a fork waits for them.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from featstore.errors import FeatstoreError
from featstore.system.forks import no_fork
from featstore.torch.upload.cudart import refuse_missing

if TYPE_CHECKING:
    from collections.abc import Iterator

_computed = False


def about_to_compute(device: torch.device) -> None:
    """Note that torch computes on `device` in this process.

    Raises:
        FeatstoreError: it is not there, or a fork made that impossible.
    """
    global _computed
    if device.type == "cuda" and torch.cuda._is_in_bad_fork():
        raise FeatstoreError(
            f"this process was forked from one that used CUDA, and cannot compute on {device}",
            remedy="start processes with multiprocessing's spawn, or fork before the first model is loaded and load "
            "one in each process",
        )
    refuse_missing(device)
    _computed = True


@contextmanager
def computing(device: torch.device) -> Iterator[None]:
    """Compute on `device` inside the block, in which no other thread can fork."""
    about_to_compute(device)
    if device.type == "cuda":  # a child could do nothing with the parent's GPU
        yield
        return
    with no_fork():
        yield


def _use_one_thread() -> None:
    # The parent's OpenMP threads are not in the child, and libgomp would wait for them forever; torch's DataLoader
    # does the same in its workers.
    if _computed:
        torch.set_num_threads(1)


os.register_at_fork(after_in_child=_use_one_thread)
