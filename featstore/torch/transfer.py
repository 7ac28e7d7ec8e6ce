"""Stored bytes to a GPU, the fastest way that is safe.

registered: the GPU reads the map itself. staged: through page-locked chunks. pageable: as the driver copies anything.
Each falls back to the next where it cannot be had; `explain` says what was chosen and why.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from featstore.torch.memory import alias
from featstore.torch.registered import refusal, registered_spans
from featstore.torch.staged import shared_ring

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from featstore.record import Features

WAYS = ("auto", "registered", "staged", "pageable")
log = logging.getLogger("featstore.torch")


def upload(
    values: NDArray[np.uint8],
    out: torch.Tensor,
    *,
    owner: object = None,
    file_bytes: int = 0,
    way: str = "auto",
) -> torch.cuda.Event | None:
    """Copy `values`, uint8 of one axis, to `out`, as many bytes on a GPU, and return what to wait for.

    owner: the object that keeps the map these bytes lie in, None where they lie elsewhere. Work queued on the current
    stream finds the bytes in `out`. The map must stay until the event returned has passed; None where it was read.
    """
    if way not in WAYS:
        raise ValueError(f"way is {way!r}; use one of {', '.join(WAYS)}")
    if way in ("auto", "registered") and owner is not None:
        spans = registered_spans(owner, values.__array_interface__["data"][0], len(values))
        if spans:
            return _copy_spans(values, out, spans)
    if way != "pageable":
        try:
            shared_ring().upload(values, out)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as exc:  # no page-locked memory to be had
            log.info("copying without page-locked memory: %s", exc)
        else:
            return None
    out.copy_(alias(values))
    return None


def explain(features: Features, device: torch.device | str = "cuda") -> str:
    """Return in a sentence which way `to_tensor` takes to `device` for these features, and why."""
    if torch.device(device).type == "cpu":
        return "cpu: read in place, in blocks that fit the cache"
    if features.owner is None or features.header.codec != "raw":
        return "staged: the values do not lie in a map"
    reason = refusal(features.owner, features.data.__array_interface__["data"][0])
    if reason:
        return f"staged: {reason}"
    return "registered: the GPU reads the map itself"


def _copy_spans(
    values: NDArray[np.uint8], out: torch.Tensor, spans: list[tuple[int, int]]
) -> torch.cuda.Event:
    source = alias(values)
    for offset, length in spans:
        out[offset : offset + length].copy_(source[offset : offset + length], non_blocking=True)
    event: torch.cuda.Event = torch.cuda.current_stream(out.device).record_event()
    return event
