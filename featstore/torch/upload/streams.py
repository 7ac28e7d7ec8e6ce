"""The streams that records cross to a GPU on, beside the one the caller computes on."""

from __future__ import annotations

import threading

import torch

_local = threading.local()


def numbered(device: torch.device) -> torch.device:
    """Return `device` under its own name: `cuda` alone means the current GPU, and a tensor there says `cuda:0`."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """Return this thread's stream for copies to `device`: one thread's copies wait for no other thread's kernels."""
    streams: dict[torch.device, torch.cuda.Stream] = _local.__dict__.setdefault("streams", {})
    device = numbered(device)  # two streams for one GPU would not wait for each other
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return streams[device]
