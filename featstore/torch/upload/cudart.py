"""CUDA as the uploads use it: a GPU under its own name, streams beside the caller's, memory registered for copies."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import torch

READ_ONLY = 0x08  # the memory is
_PORTABLE = 0x01  # for every GPU
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


def register(address: int, size: int, flags: int = 0) -> int:
    """Page-lock memory and let GPUs read it by themselves; return CUDA's error, 0 if it did not refuse."""
    return _clear_error(int(_cudart().cudaHostRegister(address, size, _PORTABLE | flags)))


def unregister(address: int) -> None:
    """Undo the registration that begins at `address`, if there is one."""
    _clear_error(int(_cudart().cudaHostUnregister(address)))


def _clear_error(code: int) -> int:
    # What was refused stays the runtime's last error until a launch reports it: let that be ours.
    if code:
        with contextlib.suppress(RuntimeError):
            torch.zeros(1, device="cuda")
    return code


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
