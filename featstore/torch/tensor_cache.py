"""Tensors of the videos asked about last."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

import torch

from featstore.system.forks import tell_of_forks

if TYPE_CHECKING:
    from collections.abc import Callable


class TensorCache:
    """The tensors used last, up to `max_bytes`: several questions on one video look it up once.

    >>> cache = TensorCache(4 << 30)
    >>> cache.get("water", lambda: to_tensor(dataset["water"], device="cuda"))  # doctest: +SKIP

    Threads may share it; two that ask for the same new tensor at once may both make it, and both get the first.
    """

    def __init__(self, max_bytes: int) -> None:
        """Begin empty."""
        self._max_bytes = max_bytes
        self._bytes = 0
        self._tensors: OrderedDict[object, tuple[torch.Tensor, torch.cuda.Event | None]] = (
            OrderedDict()
        )
        self._lock = threading.Lock()
        tell_of_forks(self)

    @property
    def nbytes(self) -> int:
        """Return the bytes of the tensors that are here."""
        return self._bytes

    def get(self, key: object, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the tensor of `key`, made by `make` unless it is here; do not write to it.

        A tensor larger than the whole cache is returned and not kept.
        """
        with self._lock:
            if key in self._tensors:
                self._tensors.move_to_end(key)
                return _for_this_stream(*self._tensors[key])
        made = make()  # without the lock: it takes milliseconds
        ready = torch.cuda.current_stream(made.device).record_event() if made.is_cuda else None
        with self._lock:
            if key in self._tensors:
                return _for_this_stream(*self._tensors[key])
            if made.nbytes <= self._max_bytes:
                self._tensors[key] = made, ready
                self._bytes += made.nbytes
            while self._bytes > self._max_bytes:
                _, (gone, _) = self._tensors.popitem(last=False)
                self._bytes -= gone.nbytes
            return made

    def after_fork(self) -> None:
        """Let go of a lock that a thread of the parent may hold."""
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Let go of every tensor."""
        with self._lock:
            self._tensors.clear()
            self._bytes = 0


def _for_this_stream(tensor: torch.Tensor, ready: torch.cuda.Event | None) -> torch.Tensor:
    """Return a tensor that was perhaps made on another stream: waited for there, and kept while it is used here."""
    if ready is not None:
        stream = torch.cuda.current_stream(tensor.device)
        stream.wait_event(ready)
        tensor.record_stream(stream)
    return tensor
