"""stdout and stderr that are closed, full or unread: no work is lost because something cannot be printed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from functools import cache
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

    from rich.console import Console


@cache
def console() -> Console:
    """Return the terminal that stderr is: progress bars are drawn on it, and lines printed above them."""
    from rich.console import Console

    return Console(stderr=True)


def say(line: str) -> None:
    """Print a line of progress or an error on stderr, if possible."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr.isatty():
            console().out(line, highlight=False)  # the terminal wraps it: copied, it is one line
        else:
            print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Open closed streams for a command; if its results cannot be written, end it with one line and exit code 1.

    If nobody reads them to the end, as in a pipe to `head`, it ends by SIGPIPE as other programs do.
    """
    _open_closed()
    stdout = sys.stdout
    try:
        yield
    except SystemExit:
        if sys.stdout is not stdout:  # click found the pipe broken and has replaced it
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            signal.raise_signal(signal.SIGPIPE)
        raise
    except OSError as exc:
        if not _is_echos(exc):
            raise
        say(f"featstore: the output cannot be written: {exc.strerror}")
        sys.exit(1)
    finally:
        for stream in (sys.stdout, sys.stderr):
            _let_go(stream)


def _open_closed() -> None:
    # Otherwise the first file that is opened, perhaps a store's, gets the stream's descriptor, and whatever a library
    # or a child prints is written into it.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115  # kept to the end
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def _is_echos(exc: OSError) -> bool:
    """Return whether click.echo raised `exc`: it writes all results, and no files."""
    at = exc.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return at is not None and at.tb_frame.f_code is click.echo.__code__


def _let_go(stream: TextIO) -> None:
    """Keep the exit code: the interpreter replaces it by 120 if a stream cannot be flushed."""
    try:
        stream.flush()
    except OSError:
        with open(os.devnull, "w", encoding="utf-8") as sink:
            os.dup2(sink.fileno(), stream.fileno())
