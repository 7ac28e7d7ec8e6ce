"""What the library says beside its results: records of loggers below `featstore`, which programs show, keep or drop.

The library prints nothing itself. A program that has set up no logging still shows warnings on stderr, for that is what
`logging` does; what is said for information, such as the report of a model's hits, shows where INFO is asked for.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from featstore.errors import plain

if TYPE_CHECKING:
    from collections.abc import Callable

LIBRARY = "featstore"


def tell(name: str, sentence: str, level: int = logging.WARNING) -> None:
    """Log a sentence for the user by the logger `name`; one that cannot be shown costs no answer."""
    with suppress(OSError, ValueError):
        logging.getLogger(name).log(level, "%s", plain(sentence))


class LineHandler(logging.Handler):
    """Gives each record to a function as text; a warning after the name of who warns, `featstore: ...`."""

    def __init__(self, show: Callable[[str], None], level: int = logging.INFO) -> None:
        """Take the function, and the level from which on records are shown."""
        super().__init__(level)
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record."""
        text = record.getMessage()
        self._show(f"featstore: {text}" if record.levelno >= logging.WARNING else text)


def show_on_stderr() -> None:
    """Show on stderr what the library says, in a program of others that has set up nothing for featstore's logger."""
    library = logging.getLogger(LIBRARY)
    if not library.handlers:
        library.addHandler(LineHandler(_print))
        library.setLevel(logging.INFO)
        library.propagate = False  # each sentence once, whatever the program does with all loggers


def _print(line: str) -> None:
    if sys.stderr is not None:  # print would use stdout then
        with suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)
