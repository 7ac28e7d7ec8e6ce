"""torch in a forked child: on one thread where the parent computed before it forked, and not with the parent's CUDA."""

from __future__ import annotations

import os

import torch

from featstore.errors import FeatstoreError

_computed = False


def about_to_compute(device: torch.device) -> None:
    """Note that torch computes on `device` in this process; raise FeatstoreError where it cannot after a fork."""
    global _computed
    if device.type == "cuda" and torch.cuda._is_in_bad_fork():
        raise FeatstoreError(
            f"this process was forked from one that used CUDA, and cannot compute on {device}: start processes with "
            "multiprocessing's spawn, or fork before the first model is loaded and load one in each"
        )
    _computed = True


def _compute_alone() -> None:
    # The parent's OpenMP threads are not in the child, and libgomp waits for them for good; torch's DataLoader does
    # the same in its workers.
    if _computed:
        torch.set_num_threads(1)


os.register_at_fork(after_in_child=_compute_alone)
