"""CUDA as the uploads use it: devices that are there, their numbers, copy streams, page-locked memory."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import torch

from featstore.errors import FeatstoreError

READ_ONLY = 0x08  # the memory is read-only
_PORTABLE = 0x01  # registered for every GPU
_local = threading.local()


def find_device(device: torch.device | str | None) -> torch.device:
    """Return the device that is meant, the CPU by default; FeatstoreError if torch knows none of that name."""
    try:
        return torch.device("cpu" if device is None else device)
    except RuntimeError as exc:
        raise FeatstoreError(
            f"device is {device!r}, which is none of torch's", remedy="use cpu, cuda or cuda:0"
        ) from exc


def refuse_missing(device: torch.device) -> None:
    """Raise FeatstoreError if `device` is not there."""
    if device.type in ("cpu", "meta"):
        return
    if device.type != "cuda":
        try:
            torch.empty(0, device=device)
        except (AssertionError, ImportError, RuntimeError) as exc:  # each backend has its own
            raise FeatstoreError(
                f"device is {str(device)!r}, which torch {torch.__version__} has not here",
                remedy="use cpu, cuda or cuda:0",
            ) from exc
        return
    if not torch.cuda.is_available():
        raise FeatstoreError(
            f"device is {str(device)!r}, but torch {torch.__version__} sees no GPU",
            remedy='use device="cpu" (on the command line --device cpu), or install a torch built for this '
            "machine's driver",
        )
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise FeatstoreError(
            f"device is {str(device)!r}, but the GPUs here are {count}, the first is cuda:0",
            remedy="name one of them with device= (on the command line --device)",
        )


def numbered(device: torch.device) -> torch.device:
    """Return `device` with its number: `cuda` means the current GPU, whose tensors have `cuda:0`."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """Return this thread's stream for copies to `device`, so that they do not wait for kernels of other threads."""
    streams: dict[torch.device, torch.cuda.Stream] = _local.__dict__.setdefault("streams", {})
    device = numbered(device)  # two streams for one GPU would not wait for each other
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return streams[device]


def register(address: int, size: int, flags: int = 0) -> int:
    """Page-lock memory, so that GPUs read it directly; return CUDA's error code, 0 for success."""
    return _clear_error(int(_cudart().cudaHostRegister(address, size, _PORTABLE | flags)))


def unregister(address: int) -> None:
    """Undo the registration that starts at `address`, if there is one."""
    _clear_error(int(_cudart().cudaHostUnregister(address)))


def _clear_error(code: int) -> int:
    # An error stays the runtime's last one until a launch reports it: launch something here.
    if code:
        with contextlib.suppress(RuntimeError):
            torch.zeros(1, device="cuda")
    return code


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
