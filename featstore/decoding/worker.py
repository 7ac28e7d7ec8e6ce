"""The process that decodes: one video at a time into shared memory, killed from outside when it hangs.

Its own memory is limited, so that a file which asks for all there is costs nobody else's; the shared memory is apart.
"""

from __future__ import annotations

import math
import resource
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from featstore.decoding.video_file import check_is_file, check_is_unchanged, decode, fingerprint
from featstore.errors import VideoError
from featstore.fields import build
from featstore.preprocessing import Preprocessing
from featstore.sampling import Sampling
from featstore.system.processes import join_parent, receive, send

if TYPE_CHECKING:
    from featstore.system.processes import Slots


def main() -> None:
    """Answer each request for a video, repeating it, until the parent closes the pipe."""
    connection, first, slots = join_parent(die_with_parent=True)
    sampling = Sampling(**first["sampling"])
    pre = build(Preprocessing, first["preprocessing"])
    decoder = first["decoder"]
    # Before memory is limited: a library that cannot be mapped any more is not the next video's fault.
    import featstore.decoding.av_decoder  # noqa: F401

    _limit_memory(first["memory_limit"])
    while True:
        try:
            request = receive(connection)
        except EOFError:
            return
        begun = time.perf_counter()
        found = answer(request, slots, sampling, pre, decoder)
        send(connection, {**found, "request": request, "seconds": time.perf_counter() - begun})


def answer(
    request: dict[str, Any],
    slots: Slots,
    sampling: Sampling,
    pre: Preprocessing,
    decoder: str,
) -> dict[str, Any]:
    """Return what decoding `request["path"]` into `request["slot"]` came to: the clip, or the reason it failed."""
    path = request["path"]
    shape = (sampling.nframe, *pre.frame_shape)
    memory = slots.slot(request["slot"])[: math.prod(shape)]
    try:
        out = np.frombuffer(memory, dtype=np.uint8).reshape(shape)
        before = check_is_file(path)
        clip = decode(path, sampling, pre, out, decoder=decoder)
        source = fingerprint(path)
        check_is_unchanged(path, before)  # or these are another file's frames
    except VideoError as exc:
        return {"error": str(exc)}
    except MemoryError:
        return {"out_of_memory": True}
    except Exception as exc:  # whatever a decoder comes up with ends this video, not the run
        return {"error": f"{path} cannot be decoded: {type(exc).__name__}: {exc}"}
    return {"clip": asdict(clip), "source": asdict(source)}


def _limit_memory(size: int) -> None:
    """Have every allocation fail that would bring the process's private memory above `size` bytes."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    size = size if most == resource.RLIM_INFINITY else min(size, most)
    resource.setrlimit(resource.RLIMIT_DATA, (size, most))


if __name__ == "__main__":
    main()
