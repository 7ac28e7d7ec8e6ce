"""stdout and stderr that are closed, full or read by nobody: no work is lost to what cannot be printed."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO


def say(line: str) -> None:
    """Print a line of progress on stderr, if it can be."""
    with contextlib.suppress(OSError):
        click.echo(line, err=True)


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Run a command: closed streams are opened, and results that cannot be written end it in one line, code 1."""
    _open_closed()
    try:
        yield
    except OSError as exc:
        if not _is_echos(exc):
            raise
        say(f"featstore: the output cannot be written: {exc.strerror}")
        sys.exit(1)
    finally:
        for stream in (sys.stdout, sys.stderr):
            _let_go(stream)


def _open_closed() -> None:
    # Else the first file that is opened, a store's perhaps, gets the stream's number, and what a library or a child
    # prints is written into it.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115  # kept to the end
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def _is_echos(exc: OSError) -> bool:
    """Return whether click.echo raised it, which writes all results, and not the reading or writing of a file."""
    at = exc.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return at is not None and at.tb_frame.f_code is click.echo.__code__


def _let_go(stream: TextIO) -> None:
    """Have the interpreter end with the exit code it was given: it is 120 where a stream cannot be flushed."""
    try:
        stream.flush()
    except OSError:
        with open(os.devnull, "w", encoding="utf-8") as sink:
            os.dup2(sink.fileno(), stream.fileno())
