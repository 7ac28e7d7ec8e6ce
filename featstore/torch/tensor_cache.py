"""A bounded cache of tensors, the most recently used."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

import torch

from featstore.system.forks import tell_of_forks

if TYPE_CHECKING:
    from collections.abc import Callable


class TensorCache:
    """The most recently used tensors: several questions on one video look it up once.

    Threads may share it. Two that ask for the same new tensor at once may both make it, and both get the first.

    Args:
        max_bytes: bytes of tensors to keep.

    >>> cache = TensorCache(4 << 30)
    >>> cache.get("water", lambda: to_tensor(dataset["water"], device="cuda"))  # doctest: +SKIP
    """

    def __init__(self, max_bytes: int) -> None:
        """Start empty."""
        self._max_bytes = max_bytes
        self._bytes = 0
        self._tensors: OrderedDict[object, tuple[torch.Tensor, torch.cuda.Event | None]] = (
            OrderedDict()
        )
        self._lock = threading.Lock()
        tell_of_forks(self)

    @property
    def nbytes(self) -> int:
        """Return the bytes of the tensors that are kept."""
        return self._bytes

    def get(self, key: object, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the tensor of `key`, calling `make` if it is not kept.

        Args:
            key: hashable name of the tensor.
            make: returns the tensor; one larger than the whole cache is returned and not kept.

        Returns:
            The tensor, safe to use on the current CUDA stream. Others may get the same: do not write to it.
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
        """Replace a lock that a thread of the parent may hold."""
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Drop every tensor."""
        with self._lock:
            self._tensors.clear()
            self._bytes = 0


def _for_this_stream(tensor: torch.Tensor, ready: torch.cuda.Event | None) -> torch.Tensor:
    """Return `tensor` for use on the current stream, which waits until it is ready."""
    if ready is not None:
        stream = torch.cuda.current_stream(tensor.device)
        stream.wait_event(ready)
        tensor.record_stream(stream)
    return tensor
