"""What is asked of the C library directly, because Python has no call for it; the only place that opens it."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
from typing import Any

_MAP_FAILED = ctypes.c_void_p(-1).value
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_longlong]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def map_file(fd: int, length: int, offset: int = 0) -> int:
    """Map `length` bytes of a file read-only, also those beyond its end; return the address or raise OSError."""
    address: int | None = _libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, fd, offset)
    if address is None or address == _MAP_FAILED:
        raise _error()
    return address


def unmap(address: int, length: int) -> None:
    """Take back what `map_file` mapped."""
    _libc.munmap(address, length)


def resident_pages(address: int, length: int) -> bytes | None:
    """Return a byte per mapped page, its lowest bit set if the page is in memory; None if the system does not say."""
    if not hasattr(_libc, "mincore"):
        return None
    found = ctypes.create_string_buffer(-(-length // mmap.PAGESIZE))
    if _libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(length), found) != 0:
        return None
    return found.raw


def fallocate(fd: int, size: int) -> None:
    """Give the file its first `size` bytes on disk; raise OSError. Does nothing on systems without the call.

    os.posix_fallocate will not do: if a file system cannot allocate, it writes zeros over what others write.
    """
    if hasattr(_libc, "fallocate"):
        _check(_libc.fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(size)))


def exchange(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> None:
    """Exchange two paths in one step that nobody sees halfway; raise OSError."""
    if not hasattr(_libc, "renameat2"):  # older than glibc 2.28, or not Linux
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    names = os.fsencode(one), os.fsencode(other)
    _check(_libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE))


def die_with_parent() -> None:
    """Have this process killed when the thread that started it ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def keep_freed_memory() -> None:
    """Have malloc keep what is freed instead of giving it back; does nothing with another C library than glibc."""
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_MMAP_MAX, 0)
        _libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def _check(result: Any) -> None:
    if result != 0:
        raise _error()


def _error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))
