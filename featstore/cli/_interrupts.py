"""Interrupts of a command: raised in it, or passed to its work as an event, which then stops when it can.

A signal that was ignored when the program started, as under nohup or in the background of a script, stays ignored.
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
    """Let SIGINT raise KeyboardInterrupt inside the block, whatever it does outside."""
    with _handled(signal.default_int_handler, signal.SIGINT):
        yield


@contextlib.contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Yield an event that the first SIGINT, SIGTERM or SIGHUP sets; a second one ends the program immediately.

    Ending immediately is like being killed: committed records stay, decoders and encoders die with this process, and
    the writer commits what it has received. Nothing is unwound, because that would wait for the current batch.
    """
    stop = threading.Event()

    def on_signal(number: int, frame: object) -> None:
        if stop.is_set():
            show_cursor()
            os._exit(INTERRUPTED)
        stop.set()
        with contextlib.suppress(RuntimeError):  # it arrived while a line was being printed
            say("stopping: encoded videos are being stored; interrupt again to end immediately")

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
