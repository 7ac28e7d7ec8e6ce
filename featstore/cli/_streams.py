"""stdout and stderr that are closed, full or unread: no work is lost because something cannot be printed."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from functools import cache
from typing import TYPE_CHECKING

import click

from featstore.system.logs import LIBRARY, LineHandler

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

    from rich.console import Console


@cache
def console() -> Console:
    """Return the terminal that stderr is: progress bars are drawn on it, and lines printed above them."""
    from rich.console import Console

    return Console(stderr=True)


class _LogFile(logging.FileHandler):
    """The file of `--log-file`; if it cannot be written to, that is said once, and the work goes on."""

    def __init__(self, path: str) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        form = logging.Formatter("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
        form.converter = time.gmtime
        self.setFormatter(form)

    def handleError(self, record: logging.LogRecord) -> None:  # of logging
        if _log.file is self:
            _log.file = None
            logging.getLogger(LIBRARY).removeHandler(self)
            _show(f"featstore: {self.baseFilename} cannot be written to: {sys.exc_info()[1]}")
            with contextlib.suppress(OSError):  # what is left in its buffer
                self.close()


class _Log:
    """Where this command shows and keeps what it says."""

    quiet = False
    file: _LogFile | None = None


_log = _Log()


def show_log(level: int = logging.INFO) -> None:
    """Show what the library says from `level` on, with the notes of the command unless only warnings are asked for."""
    library = logging.getLogger(LIBRARY)
    for handler in [*library.handlers]:
        if isinstance(handler, LineHandler):
            library.removeHandler(handler)
    library.addHandler(LineHandler(_show, level))
    library.setLevel(logging.DEBUG if _log.file else level)
    library.propagate = False
    _log.quiet = level >= logging.WARNING


def keep_log(path: str | None) -> None:
    """Add all that is said from now on to a file; raise OSError if it cannot be opened. None ends that."""
    library = logging.getLogger(LIBRARY)
    if _log.file is not None:
        library.removeHandler(_log.file)
        with contextlib.suppress(OSError):
            _log.file.close()
        _log.file = None
    if path is not None:
        _log.file = _LogFile(path)
        library.addHandler(_log.file)
        library.setLevel(logging.DEBUG)


def is_quiet() -> bool:
    """Return whether neither progress nor notes are to be shown."""
    return _log.quiet


def note(line: str) -> None:
    """Print a line of progress on stderr, unless the command is to be quiet."""
    if not _log.quiet:
        _show(line)
    _keep(line, logging.INFO)


def say(line: str) -> None:
    """Print an error, or what must be known, on stderr, if possible."""
    _show(line)
    _keep(line, logging.ERROR if line.startswith("featstore: ") else logging.INFO)


def _keep(line: str, level: int) -> None:
    if _log.file is not None:
        text = line.removeprefix("featstore: ")
        _log.file.handle(logging.LogRecord(LIBRARY, level, "", 0, "%s", (text,), None))


def _show(line: str) -> None:
    if sys.stderr is None:
        return
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
