"""The process that decodes: one video at a time into shared memory, killed from outside when it hangs.

Its own memory is limited, so that a file which asks for everything harms only itself; the shared memory is not counted.
"""

# ruff: noqa: TC001 (the types of fields are read when a message is rebuilt)

from __future__ import annotations

import resource
import time
from dataclasses import dataclass

import numpy as np

from featstore.decoding.frame_selection import Clip
from featstore.decoding.video_file import check_is_file, check_is_unchanged, decode, fingerprint
from featstore.errors import VideoError
from featstore.preprocessing import Preprocessing, frame_bytes, needs_torch
from featstore.records.header import SourceFingerprint
from featstore.sampling import Sampling
from featstore.system.processes import Slots, join_parent, receive, send

MODULE = "featstore.decoding.worker"


@dataclass(frozen=True)
class DecodeSetup:
    """The first message to a worker.

    frames: a slot takes the frames of one video. memory_limit: bytes the process may take beside them.
    decoder: see featstore.decoding.video_file.decode.
    """

    frames: Slots
    sampling: Sampling
    preprocessing: Preprocessing
    memory_limit: int
    decoder: str


@dataclass(frozen=True)
class DecodeTask:
    """A video to decode into a slot; `number` tells tasks apart."""

    number: int
    path: str
    slot: int


@dataclass(frozen=True)
class DecodeResult:
    """What became of a task: clip and source, or the error, which is empty also if memory ran out."""

    task: DecodeTask
    seconds: float
    clip: Clip | None = None
    source: SourceFingerprint | None = None
    error: str = ""
    out_of_memory: bool = False


def main() -> None:
    """Work on each task until the parent closes the pipe."""
    connection, setup = join_parent(DecodeSetup, die_with_parent=True)
    # Before memory is limited: the next video is not to blame for a library that can no longer be mapped.
    import featstore.decoding.av_decoder  # noqa: F401

    if needs_torch(setup.preprocessing):
        import torch

        torch.set_num_threads(1)  # each core has a worker

    _limit_memory(setup.memory_limit)
    while True:
        try:
            task: DecodeTask = receive(connection, DecodeTask)
        except EOFError:
            return
        send(connection, answer(task, setup))


def answer(task: DecodeTask, setup: DecodeSetup) -> DecodeResult:
    """Decode the video of `task` into its slot, and return the clip or the reason why it failed."""
    started = time.perf_counter()

    def seconds() -> float:
        return time.perf_counter() - started

    path, size = task.path, setup.sampling.nframe * frame_bytes(setup.preprocessing)
    try:
        out = np.frombuffer(setup.frames.slot(task.slot)[:size], dtype=np.uint8)
        before = check_is_file(path)
        clip = decode(path, setup.sampling, setup.preprocessing, out, decoder=setup.decoder)
        source = fingerprint(path)
        check_is_unchanged(path, before)  # or these are another file's frames
    except VideoError as exc:
        return DecodeResult(task, seconds(), error=f"{exc}{_or_too_little(setup.memory_limit)}")
    except Exception as exc:  # whatever a decoder raises ends this video, not the run
        if isinstance(exc, MemoryError) or _is_unmapped(exc):
            return DecodeResult(task, seconds(), out_of_memory=True)
        error = f"{path} cannot be decoded: {type(exc).__name__}: {exc}"
        return DecodeResult(task, seconds(), error=error)
    return DecodeResult(task, seconds(), clip, source)


def _or_too_little(limit: int) -> str:
    """Return what else may be the reason of an error: where memory runs out, libraries also speak of damage."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    if used < limit // 4:
        return ""
    return (
        f"; or it is sound and needs more memory than {limit / 2**30:.3g} GiB: then ingest it with a larger "
        "--decode-memory"
    )


def _is_unmapped(exc: Exception) -> bool:
    """Return whether a library was found, and does not fit into memory; for some of them, the loader says OSError."""
    if isinstance(exc, OSError):
        return " map " in str(exc)
    return isinstance(exc, ImportError) and not isinstance(exc, ModuleNotFoundError)


def _limit_memory(size: int) -> None:
    """Make every allocation fail that would bring the process's private memory above `size` bytes."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    size = size if most == resource.RLIM_INFINITY else min(size, most)
    resource.setrlimit(resource.RLIMIT_DATA, (size, most))


if __name__ == "__main__":
    main()
