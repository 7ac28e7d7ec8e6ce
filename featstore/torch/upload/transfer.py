"""Stored bytes to a GPU, the fastest way that is safe.

registered: the GPU reads the memory map directly. staged: through page-locked slots. pageable: as the driver copies any
memory. Each falls back to the next if it is not available; `explain` tells which is chosen and why.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from featstore.errors import FeatstoreError
from featstore.torch.upload.cudart import find_device, refuse_missing
from featstore.torch.upload.registered import (
    register_record,
    unregister_replaced,
    why_not_registered,
)
from featstore.torch.upload.staged import alias, piece_ends, shared_ring

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from featstore.records.features import Features

WAYS = ("auto", "registered", "staged", "pageable")
log = logging.getLogger("featstore.torch")


def upload(
    values: NDArray[np.uint8], out: torch.Tensor, *, owner: object = None, way: str = "auto"
) -> Generator[tuple[int, torch.cuda.Event]]:
    """Copy `values`, uint8 of one axis, to `out`, as many bytes on a GPU, in pieces, each on the stream current then.

    Args:
        values: the bytes; they must stay valid until the last event passed.
        out: uint8 tensor of the same length on a GPU.
        owner: the object that keeps the memory map of `values` open; None if they are not in one.
        way: one of WAYS.

    Yields:
        `(bytes, event)`: so many of the first bytes of `out` are copied once the event passes. Close the generator if
        it is not exhausted: other uploads may wait for it.
    """
    address = values.__array_interface__["data"][0]
    if (
        owner is not None
        and way in ("auto", "registered")
        and register_record(owner, address, len(values), at_once=way == "registered")
    ):
        yield from _copy(values, out)
        return
    if way != "pageable":
        try:
            ring = shared_ring()
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as exc:  # no page-locked memory is available
            log.info("copying without page-locked memory: %s", exc)
        else:
            yield from ring.upload(values, out)
            return
    if owner is not None:
        unregister_replaced(owner, address, len(values))
    yield from _copy(values, out)


def explain(features: Features, device: torch.device | str = "cuda") -> str:
    """Return a sentence that tells how the next `to_tensor` brings features to a device, and why.

    Args:
        features: as a look-up in the store returns them.
        device: the device; nothing is copied to it.
    """
    place = find_device(device)
    if place.type == "cpu":
        return "cpu: read in place, in blocks that fit the cache"
    try:
        refuse_missing(place)
    except FeatstoreError as exc:
        return f"not at all: {exc.found}"
    if place.type != "cuda":
        return f"cpu: read in place, and copied to {place.type} as a tensor"
    codec = features.header.storage.codec
    if codec != "raw":
        return f"staged: {codec} is decompressed on the CPU"
    if features.owner is None:
        return "staged: the bytes are not in a map"
    values = features.data
    reason = why_not_registered(
        features.owner, values.__array_interface__["data"][0], values.nbytes
    )
    return f"staged: {reason}" if reason else "registered: the GPU reads the map itself"


def _copy(values: NDArray[np.uint8], out: torch.Tensor) -> Iterator[tuple[int, torch.cuda.Event]]:
    # A piece is started when it is requested: the caller's work in between takes no time if it is faster than the copy.
    source, start = alias(values), 0
    for end in piece_ends(len(values)):
        out[start:end].copy_(source[start:end], non_blocking=True)
        yield end, torch.cuda.current_stream(out.device).record_event()
        start = end
