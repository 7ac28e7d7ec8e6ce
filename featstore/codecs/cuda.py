"""A GPU's memory through the CUDA driver alone: who compresses a record need not load torch for it."""

from __future__ import annotations

import ctypes
import functools
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from featstore.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from numpy.typing import NDArray


class Gpu:
    """The first GPU that CUDA_VISIBLE_DEVICES names, current in this thread inside the `with`; frees its memory.

    Every call raises StoreError where the driver refuses.
    """

    def __init__(self) -> None:
        """Find the driver and the GPU's primary context, which torch uses too."""
        self._call, self._context = _primary_context(os.getpid())
        self._taken: list[int] = []

    def __enter__(self) -> Gpu:
        """Make it current."""
        self._call("cuCtxPushCurrent_v2", self._context)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        """Free what was taken."""
        for address in self._taken:
            self._call("cuMemFree_v2", ctypes.c_uint64(address))
        self._taken.clear()
        self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def take(self, size: int) -> int:
        """Return the address of `size` bytes."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(1, size)))
        self._taken.append(address.value)
        return address.value

    def put(self, values: NDArray[Any]) -> int:
        """Return the address of a copy of `values`, contiguous."""
        address = self.take(values.nbytes)
        self._call(
            "cuMemcpyHtoD_v2",
            ctypes.c_uint64(address),
            ctypes.c_void_p(values.__array_interface__["data"][0]),
            ctypes.c_size_t(values.nbytes),
        )
        return address

    def fetch(self, address: int, count: int, dtype: str) -> NDArray[Any]:
        """Return a copy of `count` values at `address`, once all work before is done."""
        values = np.empty(count, dtype)
        self._call(
            "cuMemcpyDtoH_v2",
            ctypes.c_void_p(values.__array_interface__["data"][0]),
            ctypes.c_uint64(address),
            ctypes.c_size_t(values.nbytes),
        )
        return values


@functools.lru_cache(maxsize=1)
def _primary_context(pid: int) -> tuple[Callable[..., None], ctypes.c_void_p]:
    """Return how to call the driver, and the context, kept for this process's life: making one takes 0.2 s."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as exc:
        raise StoreError(f"there is no CUDA driver ({exc})") from exc

    def call(name: str, *arguments: Any) -> None:
        code = getattr(driver, name)(*arguments)
        if code != 0:
            raise StoreError(f"the CUDA driver refused {name} (error {code})")

    device, context = ctypes.c_int(), ctypes.c_void_p()
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    return call, context
