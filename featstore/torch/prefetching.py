"""Tensors of the next videos while the model works on this one."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections import deque
from typing import TYPE_CHECKING, Protocol

import torch

from featstore.errors import FeatstoreError
from featstore.torch.conversion import to_tensor
from featstore.torch.upload.cudart import numbered

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from featstore.records.features import Features


LONGEST_JOIN = 5.0  # seconds


class Source(Protocol):
    """What videos are fetched from: a Dataset of the store, or a FeatureDataset."""

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
    """Yield `(video, tensor)` in order; a thread looks up, reads and uploads the next `ahead` videos meanwhile.

    source: as `store["demo"]`, or a FeatureDataset. At most `ahead + 1` tensors exist that the caller has not seen.
    What a look-up raises is raised in its turn. Closing the iterator ends the thread.
    """
    # Another thread's current GPU is the first one, whatever is the caller's.
    place = numbered(torch.device("cpu" if device is None else device))
    ready: queue.Queue[tuple[str, torch.Tensor | BaseException | None]] = queue.Queue(max(1, ahead))
    ended = threading.Event()
    begun_in = os.getpid()

    def offer(item: tuple[str, torch.Tensor | BaseException | None]) -> bool:
        while not ended.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            stream = _side_stream(place)
            for video in _reading_ahead(source, videos, ahead):
                with _working_on(place, stream):
                    tensor = to_tensor(source.lookup(video), device=place, dtype=dtype)
                if stream is not None:
                    stream.synchronize()
                if not offer((video, tensor)):
                    return
        except BaseException as exc:  # raised again where it can be heard
            offer(("", exc))
        else:
            offer(("", None))

    thread = threading.Thread(target=work, name="featstore-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            if os.getpid() != begun_in:
                raise FeatstoreError(
                    "this process was forked after prefetch began, and its thread is the parent's alone; begin another "
                    "prefetch here"
                )
            video, item = ready.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                return
            if item.is_cuda:  # made on the thread's stream, used on the caller's
                item.record_stream(torch.cuda.current_stream(item.device))
            yield video, item
    finally:
        ended.set()
        # It ends after its video. Not waited for without end: where the collector closes a forgotten iterator, in the
        # middle of another upload of this thread, it waits for that.
        thread.join(LONGEST_JOIN)


def _reading_ahead(source: Source, videos: Iterable[str], ahead: int) -> Iterator[str]:
    """Yield `videos`, each after the disk was asked for the `ahead` next ones."""
    asked: deque[str] = deque()
    for video in videos:
        with contextlib.suppress(FeatstoreError):  # its look-up will say so in its turn
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
    if (
        stream is not None
    ):  # torch.cuda.stream(None) would begin CUDA, which a forked child must not
        stack.enter_context(
            torch.cuda.device(device)
        )  # left by a stream alone, the first GPU gets a context
        stack.enter_context(torch.cuda.stream(stream))
    return stack
