"""Which files of some folders were opened, by whatever process: told by the kernel (inotify)."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_IN_OPEN, _IN_NONBLOCK, _IN_ISDIR = 0x20, 0o4000, 0x40000000
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows


class Opened:
    """Watches `folders`, not what lies below them, from now on."""

    def __init__(self, folders: Iterable[Path]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(_IN_NONBLOCK)
        self._folders = {
            libc.inotify_add_watch(self._fd, os.fsencode(folder), _IN_OPEN): folder
            for folder in folders
        }
        assert self._fd >= 0
        assert -1 not in self._folders, os.strerror(ctypes.get_errno())

    def files(self) -> set[Path]:
        """The files opened since this was asked last."""
        found = set()
        while data := self._read():
            while data:
                watch, mask, _, length = _EVENT.unpack_from(data)
                name = os.fsdecode(data[_EVENT.size : _EVENT.size + length].rstrip(b"\0"))
                data = data[_EVENT.size + length :]
                if name and not mask & _IN_ISDIR:
                    found.add(self._folders[watch] / name)
        return found

    def close(self) -> None:
        os.close(self._fd)

    def _read(self) -> bytes:
        try:
            return os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return b""
