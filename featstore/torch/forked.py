"""torch in a forked child: on one thread if the parent computed before it forked, and without the parent's CUDA."""

from __future__ import annotations

import os

import torch

from featstore.errors import FeatstoreError

_computed = False


def about_to_compute(device: torch.device) -> None:
    """Note that torch computes on `device` in this process; raise FeatstoreError if a fork made that impossible."""
    global _computed
    if device.type == "cuda" and torch.cuda._is_in_bad_fork():
        raise FeatstoreError(
            f"this process was forked from one that used CUDA, and cannot compute on {device}",
            remedy="start processes with multiprocessing's spawn, or fork before the first model is loaded and load "
            "one in each process",
        )
    _computed = True


def _use_one_thread() -> None:
    # The parent's OpenMP threads are not in the child, and libgomp would wait for them forever; torch's DataLoader
    # does the same in its workers.
    if _computed:
        torch.set_num_threads(1)


os.register_at_fork(after_in_child=_use_one_thread)
