"""Stored int8 to floats on the device: one pass over the values if Triton can compile, in blocks otherwise.

On a CPU a few threads of our own take blocks that fit a core's cache. torch's own threads are not used: they wait for
each other after every operation, which on a busy machine takes ten times as long as the work.

The result is the float32 product `value * scale`, rounded once, with the same bits on every device; of two scales the
product is rounded to float32 first.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch

from featstore.torch.kernels.eager import blocks, restore

if TYPE_CHECKING:
    from collections.abc import Sequence

# Values per block of one of our threads: 1 MiB as float32. With smaller blocks the threads wait for the interpreter's
# lock (a record of 66 MB on 2 cores: 24 ms, with an eighth of the size 60 to 90; on 16 cores 21 ms, with half the size
# 33), larger ones do not fit the cache.
_BLOCK = 1 << 18
_VALUES_PER_THREAD = 1 << 19  # at least
# torch splits operations on more values than this (GRAIN_SIZE in ATen/TensorIterator.h) among its threads.
_UNSPLIT = 32768 - 1

log = logging.getLogger("featstore.torch")


def dequantize_into(
    out: torch.Tensor, stored: torch.Tensor, scales: tuple[torch.Tensor, ...]
) -> None:
    """Write `stored` int8 times its scales to `out`, of the same shape and on the same device.

    Args:
        out: (rows, width), of any floating-point dtype.
        stored: (rows, width) int8.
        scales: float32 that broadcast over it, at least one.
    """
    if out.device.type == "cuda" and out.is_contiguous() and (fused := fused_passes()):
        with torch.cuda.device(out.device):
            fused.dequantize(out, stored, scales)
        return
    if out.device.type == "cpu":
        _on_threads(out, stored, scales)
        return
    for rows in blocks(stored):
        out[rows].copy_(restore(stored, scales, rows))


def _on_threads(out: torch.Tensor, stored: torch.Tensor, scales: tuple[torch.Tensor, ...]) -> None:
    available = torch.get_num_threads()
    threads = min(available, stored.numel() // _VALUES_PER_THREAD)
    here = threads <= 1
    rows = max(1, (_UNSPLIT if here and available > 1 else _BLOCK) // stored.shape[1])
    count = -(-len(stored) // rows)
    places, values, *factors = (
        tensor.split(rows) if len(tensor) > 1 else (tensor,) * count  # type: ignore[no-untyped-call]
        for tensor in (out, stored, *scales)
    )
    work = list(zip(places, values, zip(*factors, strict=True), strict=True))
    if here:
        _fill(work)
        return
    pool, threads = _pool(os.getpid(), available), min(threads, count)
    shares = [work[count * i // threads : count * (i + 1) // threads] for i in range(threads)]
    for share in [pool.submit(_fill, share) for share in shares]:
        share.result()


def _fill(work: Sequence[tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]]) -> None:
    with torch.inference_mode():  # a thread does not inherit it, and `out` may have been made in it
        buffer = torch.empty(work[0][1].shape, dtype=torch.float32, device="cpu")
        for out, stored, scales in work:
            values = buffer[: len(stored)]
            if len(scales) == 1:
                values.copy_(stored).mul_(scales[0])
            else:  # the product, in place of a second buffer, which would not fit the cache beside the first
                torch.mul(*scales, out=values).mul_(stored)
            out.copy_(values)


@functools.lru_cache(maxsize=1)
def _pool(pid: int, threads: int) -> ThreadPoolExecutor:
    # A new one in a forked child, which has none of the threads.
    return ThreadPoolExecutor(threads, "featstore-dequantize", _split_nothing, (threads,))


def _split_nothing(elsewhere: int) -> None:
    """Have torch use one thread for operations of this thread, and `elsewhere` for those of others, as before."""
    torch.get_num_threads()  # the first call sets the default, and would replace ours later
    torch.set_num_threads(1)
    # That made 1 the default of new threads: another thread restores theirs without changing this one's.
    other = threading.Thread(target=torch.set_num_threads, args=(elsewhere,))
    other.start()
    other.join()


@functools.cache
def fused_passes() -> Any:
    """Return featstore.torch.kernels.fused, or None if it cannot be compiled: no Triton, no C compiler."""
    try:
        from featstore.torch.kernels import fused

        probe = torch.ones((2, 2), dtype=torch.int8, device="cuda")
        fused.dequantize(probe.float(), probe, (torch.ones((1, 2), device="cuda"),))
    except Exception as exc:  # Triton fails in as many ways as there are toolchains
        log.info("quantizing and dequantizing without fused kernels: %s", exc)
        return None
    return fused
