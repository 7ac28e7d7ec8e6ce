"""Stored int8 to floats on the device: one pass over the values where Triton can compile, blocks elsewhere.

On a CPU a few threads of our own take blocks that fit a core's cache, and torch divides none of them among its threads:
those wait for each other after every operation, which on a busy machine was measured to take ten times as long as the
work.

Either way the float32 product `value * scale`, rounded once: the same bits on every device.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

# On a CPU a few dozen rows a thread stay in its cache (measured 3.4x a memcpy, against 12.5x for all at once); on a GPU
# it bounds the float32 temporary to some 60 MB.
_CPU_ROWS = 32
_GPU_ROWS = 4096
# A block of a thread of ours: 1 MiB as float32. Smaller ones have the threads wait for the interpreter's lock (a record
# of 66 MB on 2 cores: 24 ms; with an eighth of it 60 to 90), larger ones leave the cache.
_BLOCK = 1 << 18
_WORTH_A_THREAD = 1 << 19  # values
# torch divides an operation on more values than this (GRAIN_SIZE in ATen/TensorIterator.h) among its threads.
_UNDIVIDED = 32768 - 1

log = logging.getLogger("featstore.torch")


def dequantize_into(out: torch.Tensor, stored: torch.Tensor, scale: torch.Tensor) -> None:
    """Write `stored` (N, D) int8 times `scale`, float32 that broadcasts over it, to `out` (N, D); on one device."""
    if out.device.type == "cuda" and out.is_contiguous():
        kernel = _kernel()
        if kernel is not None:
            kernel(out, stored, scale)
            return
    if out.device.type == "cpu":
        _on_threads(out, stored, scale)
        return
    for rows in blocks(stored):
        out[rows].copy_(stored[rows].float().mul_(part(scale, rows)))


def blocks(values: torch.Tensor) -> list[slice]:
    """Return slices of rows that cover `values`, in order."""
    on_cpu = values.device.type == "cpu"
    step = _CPU_ROWS * torch.get_num_threads() if on_cpu else _GPU_ROWS
    return [slice(i, min(i + step, len(values))) for i in range(0, len(values), step)]


def part(scale: torch.Tensor, rows: slice) -> torch.Tensor:
    """Return the scale of `rows`: a token's is cut, a channel's or tensor's serves all."""
    return scale[rows] if len(scale) > 1 else scale


def _on_threads(out: torch.Tensor, stored: torch.Tensor, scale: torch.Tensor) -> None:
    available = torch.get_num_threads()
    threads = min(available, stored.numel() // _WORTH_A_THREAD)
    here = threads <= 1
    rows = max(1, (_UNDIVIDED if here and available > 1 else _BLOCK) // stored.shape[1])
    places, values, scales = (
        tensor.split(rows)  # type: ignore[no-untyped-call]
        for tensor in (out, stored, scale)
    )
    count = len(values)
    work = list(zip(places, values, scales if len(scale) > 1 else scales * count, strict=True))
    if here:
        _fill(work)
        return
    pool, threads = _pool(os.getpid(), available), min(threads, count)
    shares = [work[count * i // threads : count * (i + 1) // threads] for i in range(threads)]
    for share in [pool.submit(_fill, share) for share in shares]:
        share.result()


def _fill(work: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> None:
    with (
        torch.inference_mode()
    ):  # `out` may have been made in one, and a thread does not inherit it
        buffer = torch.empty(work[0][1].shape, dtype=torch.float32, device="cpu")
        for out, stored, scale in work:
            values = buffer[: len(stored)]
            out.copy_(values.copy_(stored).mul_(scale))


@functools.lru_cache(maxsize=1)
def _pool(pid: int, threads: int) -> ThreadPoolExecutor:
    # A new one in a forked child, where threads do not survive.
    return ThreadPoolExecutor(threads, "featstore-dequantize", _divide_nothing, (threads,))


def _divide_nothing(elsewhere: int) -> None:
    """Have torch divide nothing among threads in this thread, and among `elsewhere` in others, as before."""
    torch.get_num_threads()  # the first call takes the default, and would take it later in place of ours
    torch.set_num_threads(1)
    # That made 1 the default of threads to come: another thread gives theirs back, without touching this one's.
    other = threading.Thread(target=torch.set_num_threads, args=(elsewhere,))
    other.start()
    other.join()


@functools.cache
def _kernel() -> Any:
    """Return the fused kernel, or None where it cannot be compiled: no Triton, no C compiler."""
    try:
        from featstore.torch.kernels.fused import dequantize

        probe = torch.ones((2, 2), dtype=torch.int8, device="cuda")
        dequantize(torch.empty((2, 2), device="cuda"), probe, torch.ones((1, 2), device="cuda"))
    except Exception as exc:  # Triton fails in as many ways as there are toolchains
        log.info("dequantizing without the fused kernel: %s", exc)
        return None
    return dequantize
