"""Interrupts of a command: raised in it, or told to its work, which stops when it can.

A signal that was ignored when the program began, as under nohup or in the background of a script, stays ignored.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING

from featstore.cli._progress import show_cursor
from featstore.cli._streams import say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

INTERRUPTED = 130


@contextlib.contextmanager
def raise_interrupts() -> Iterator[None]:
    """Have SIGINT raise KeyboardInterrupt in the block, whatever it does outside."""
    with _handled(signal.default_int_handler, signal.SIGINT):
        yield


@contextlib.contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Give an event that the first SIGINT, SIGTERM or SIGHUP sets; a second one ends the program at once.

    At once is as after a kill: what was committed stays, decoders and encoders die with this process, and the writer
    commits what it was given. Nothing is unwound, for that would wait for the batch that is being encoded.
    """
    stop = threading.Event()

    def on_signal(number: int, frame: object) -> None:
        if stop.is_set():
            show_cursor()
            os._exit(INTERRUPTED)
        stop.set()
        with contextlib.suppress(RuntimeError):  # it came while a line was being printed
            say("stopping: what is encoded is being stored; once more to end at once")

    with _handled(on_signal, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        yield stop


@contextlib.contextmanager
def _handled(handler: Callable[[int, Any], Any], *numbers: signal.Signals) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in numbers}
    heard = [number for number in numbers if before[number] != signal.SIG_IGN]
    try:
        for number in heard:
            signal.signal(number, handler)
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])
