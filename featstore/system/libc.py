"""Functions of the C library that Python has no call for, with their types; the only place that opens it.

None stands for one that this system's library does not have. They report failure as C does; `error` says which.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import c_char_p, c_int, c_int64, c_longlong, c_size_t, c_uint, c_ulong, c_void_p
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)


def _function(name: str, *arguments: Any, result: Any = c_int) -> Any:
    found = getattr(_libc, name, None)
    if found is not None:
        found.argtypes, found.restype = arguments, result
    return found


mmap = _function("mmap", c_void_p, c_size_t, c_int, c_int, c_int, c_longlong, result=c_void_p)
munmap = _function("munmap", c_void_p, c_size_t)
madvise = _function("madvise", c_void_p, c_size_t, c_int)
mincore = _function("mincore", c_void_p, c_size_t, c_void_p)
fallocate = _function("fallocate", c_int, c_int, c_int64, c_int64)
sync_file_range = _function("sync_file_range", c_int, c_int64, c_int64, c_uint)
renameat2 = _function("renameat2", c_int, c_char_p, c_int, c_char_p, c_uint)
prctl = _function("prctl", c_int, c_ulong)
mallopt = _function("mallopt", c_int, c_int)


def error() -> OSError:
    """Return the error of the last call that failed in this thread."""
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))
