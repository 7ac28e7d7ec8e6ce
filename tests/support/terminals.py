"""A terminal with a screen to look at, and a Python program that runs in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING

import pyte
from toys import python_env

if TYPE_CHECKING:
    from collections.abc import Callable

_ROWS = 24


class Terminal:
    """A program whose stderr is a terminal, and whose stdin is a pipe; to be used with `with`, which ends it."""

    def __init__(self, columns: int, *words: str) -> None:
        """Start Python with these arguments."""
        self.screen = pyte.Screen(columns, _ROWS)
        self._stream = pyte.ByteStream(self.screen)
        self._terminal, end = pty.openpty()
        self.resize(columns)
        self.process = subprocess.Popen(
            [sys.executable, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=end,
            env=python_env() | {"TERM": "xterm"},
            text=True,
        )
        os.close(end)

    def __enter__(self) -> Terminal:
        """Return it."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Kill the program, unless it has ended."""
        os.close(self._terminal)
        with self.process:
            self.process.kill()

    def resize(self, columns: int) -> None:
        """Change the width."""
        self.screen.resize(_ROWS, columns)
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, columns, 0, 0))

    @property
    def lines(self) -> list[str]:
        """Return what is on the screen."""
        return [line.rstrip() for line in self.screen.display if line.strip()]

    def send(self, line: str) -> None:
        """Write a line to the program's stdin."""
        assert self.process.stdin is not None
        print(line, file=self.process.stdin, flush=True)

    def until(self, is_shown: Callable[[list[str]], bool]) -> list[str]:
        """Return the screen once it is as `is_shown` says."""
        deadline = time.monotonic() + 60
        while not is_shown(self.lines):
            left = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self._terminal], [], [], left)
            assert ready, f"it was never shown: {self.lines}"
            self._stream.feed(os.read(self._terminal, 65536))
        return self.lines

    def end(self) -> list[str]:
        """Close the program's stdin, wait for its end and return the screen."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        with contextlib.suppress(OSError):  # nobody has the terminal's other end any more
            while portion := os.read(self._terminal, 65536):
                self._stream.feed(portion)
        self.process.wait(60)
        return self.lines
