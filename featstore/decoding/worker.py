"""The process that decodes: one video at a time into shared memory, killed from outside when it hangs."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from featstore.children import join_parent, receive, send
from featstore.decoding.video import decode, fingerprint
from featstore.errors import VideoError
from featstore.preprocess import Preprocessing
from featstore.sampling import Sampling

if TYPE_CHECKING:
    from featstore.children import Slots


def main() -> None:
    """Answer each request for a video until the parent closes the pipe."""
    connection, first, slots = join_parent(die_with_parent=True)
    sampling = Sampling(**first["sampling"])
    pre = Preprocessing.from_dict(first["preprocessing"])
    while True:
        try:
            request = receive(connection)
        except EOFError:
            return
        begun = time.perf_counter()
        found = answer(request, slots, sampling, pre)
        send(connection, {**found, "seconds": time.perf_counter() - begun})


def answer(
    request: dict[str, Any], slots: Slots, sampling: Sampling, pre: Preprocessing
) -> dict[str, Any]:
    """Return what decoding `request["path"]` into `request["slot"]` came to: the clip, or the reason it failed."""
    path = request["path"]
    shape = (sampling.nframe, *pre.frame_shape)
    memory = slots.slot(request["slot"])[: math.prod(shape)]
    try:
        source = fingerprint(path)
        clip = decode(path, sampling, pre, np.frombuffer(memory, dtype=np.uint8).reshape(shape))
    except VideoError as exc:
        return {"error": str(exc)}
    except Exception as exc:  # whatever a decoder comes up with ends this video, not the run
        return {"error": f"{path} cannot be decoded: {type(exc).__name__}: {exc}"}
    return {"clip": asdict(clip), "source": asdict(source)}


if __name__ == "__main__":
    main()
