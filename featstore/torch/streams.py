"""The streams that records cross to a GPU on, beside the one the caller computes on."""

from __future__ import annotations

import threading

import torch

_local = threading.local()


def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """Return this thread's stream for copies to `device`: one thread's copies wait for no other thread's kernels."""
    streams: dict[torch.device, torch.cuda.Stream] = _local.__dict__.setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return streams[device]
