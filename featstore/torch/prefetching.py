"""Tensors of the next videos, made while the model works on the current one."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections import deque
from typing import TYPE_CHECKING, Protocol

import torch

from featstore.errors import FeatstoreError
from featstore.store.dataset import Dataset
from featstore.torch.conversion import to_tensor
from featstore.torch.forked import about_to_compute
from featstore.torch.upload.cudart import find_device, numbered

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from featstore.records.features import Features


JOIN_TIMEOUT = 5.0  # seconds


class Source(Protocol):
    """Where features come from: a Dataset of the store or a FeatureDataset, each of one feature set."""

    def lookup(self, video: str) -> Features:
        """Return the stored features of `video`."""
        ...

    def read_ahead(self, video: str) -> None:
        """Have the system read the record of `video` into memory, without waiting."""
        ...


def prefetch(
    source: Source,
    videos: Iterable[str],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.bfloat16,
    ahead: int = 2,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield `(video, tensor)` in order, while a thread looks up, reads and uploads the next videos.

    Closing the iterator ends the thread.

    Args:
        source: as `store["demo"]`, or a FeatureDataset. All features are of the set that it is at the first one, also
            if another becomes the dataset's default set.
        videos: ids of the videos.
        device: where the tensors (rows, width) go, the CPU by default.
        dtype: their floating-point dtype.
        ahead: number of videos prepared ahead; at most `ahead + 1` tensors exist that the caller has not seen.

    Raises:
        ValueError: `ahead` is negative.
        FeatstoreError: the look-up of a video failed, when its turn comes; the device is not there, or not usable in a
            forked process; or this process was forked since.
    """
    if isinstance(source, Dataset):
        source = source.pinned()
    if ahead < 0:
        raise ValueError(f"ahead is {ahead}; it must be 0 or more")
    place = find_device(device)
    about_to_compute(place)
    # Another thread's current GPU is the first one, whatever the caller's is.
    place = numbered(place)
    ready: queue.Queue[tuple[str, torch.Tensor | BaseException | None]] = queue.Queue()
    room = threading.Semaphore(ahead + 1)  # for tensors that the caller has not seen
    ended = threading.Event()
    started_in = os.getpid()

    def has_room() -> bool:
        while not ended.is_set():
            if room.acquire(timeout=0.1):
                return True
        return False

    def work() -> None:
        try:
            stream = _side_stream(place)
            names = _reading_ahead(source, videos, ahead)
            while has_room():
                try:
                    video = next(names)
                except StopIteration:
                    break
                with _working_on(place, stream):
                    tensor = to_tensor(source.lookup(video), device=place, dtype=dtype)
                if stream is not None:
                    stream.synchronize()
                ready.put((video, tensor))
                del tensor  # the caller may be the last to hold it
        except BaseException as exc:  # raised again in the caller's thread
            ready.put(("", exc))
        else:
            ready.put(("", None))

    thread = threading.Thread(target=work, name="featstore-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            if os.getpid() != started_in:
                raise FeatstoreError(
                    "this process was forked after prefetch started, and its thread is in the parent only",
                    remedy="start another prefetch here",
                )
            video, item = ready.get()
            room.release()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                return
            if item.is_cuda:  # made on the thread's stream, used on the caller's
                item.record_stream(torch.cuda.current_stream(item.device))
            yield video, item
    finally:
        ended.set()
        # The thread ends after its video. The wait is bounded: if the garbage collector closes a forgotten iterator in
        # the middle of an upload of this thread, the other one waits for that upload.
        thread.join(JOIN_TIMEOUT)


def _reading_ahead(source: Source, videos: Iterable[str], ahead: int) -> Iterator[str]:
    """Yield `videos`, each after reading of the `ahead` next ones was requested."""
    asked: deque[str] = deque()
    for video in videos:
        with contextlib.suppress(FeatstoreError):  # raised by its look-up, in its turn
            source.read_ahead(video)
        asked.append(video)
        if len(asked) > ahead:
            yield asked.popleft()
    yield from asked


def _side_stream(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def _working_on(
    device: torch.device, stream: torch.cuda.Stream | None
) -> contextlib.AbstractContextManager[object]:
    stack = contextlib.ExitStack()
    # torch.cuda.stream(None) would start CUDA, which a forked child must not.
    if stream is not None:
        # Without it, leaving the stream would give the first GPU a context.
        stack.enter_context(torch.cuda.device(device))
        stack.enter_context(torch.cuda.stream(stream))
    return stack
