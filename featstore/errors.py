"""Every error featstore raises, as one tree.

FeatstoreError
├── CheckpointError        also ValueError; not a LongVA checkpoint, tensors missing
├── ListingError           also ValueError; the videos asked for cannot be listed: duplicate ids, unreadable manifest
├── StoreError
│   ├── StoreNotFound      also FileNotFoundError
│   │   └── DatasetNotFound    also KeyError
│   ├── StoreLocked        another writer is at work
│   ├── StoreDamaged       the file's pages are invalid, or its end is missing
│   ├── StoreFull          also OSError; the map, the disk or a stated limit
│   └── StoreMismatch      also ValueError; made with another encoder, sampling or format
├── FeatureNotFound        also KeyError
├── RecordError            also ValueError; corrupt, truncated, from the future
├── QuantizeError          also ValueError; features that cannot be stored as asked
│   └── NotFinite          features that are NaN or infinite
├── VideoError             cannot be decoded; carries the path
└── MissingExtra           also ImportError; names the pip command

Each message says what was found and what was expected; the remedy, printed after it, what to do.
"""

from __future__ import annotations

import errno
import functools
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import ParamSpec, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")

_MOST_COMPARED = 10_000  # names, which takes a third of a second


class FeatstoreError(Exception):
    """Base of every error featstore raises on purpose.

    Args:
        args: the message, what was found and what was expected.
        remedy: what to do about it, by default that of the class; printed after the message.
    """

    remedy = ""

    def __init__(self, *args: object, remedy: str | None = None) -> None:
        """Keep the remedy beside the message."""
        super().__init__(*args)
        if remedy is not None:
            self.remedy = remedy

    @property
    def found(self) -> str:
        """Return the message without the remedy."""
        return str(self.args[0]) if self.args else ""

    def __str__(self) -> str:
        """Return message and remedy, without the quotes of KeyError."""
        return f"{self.found}; {self.remedy}" if self.remedy else self.found


class CheckpointError(FeatstoreError, ValueError):
    """A checkpoint is not LongVA's, or lacks what its vision side needs."""


class ListingError(FeatstoreError, ValueError):
    """The videos to ingest cannot be listed: duplicate ids, a manifest that cannot be read."""


class StoreError(FeatstoreError):
    """A store cannot be opened, read or written."""


class StoreNotFound(StoreError, FileNotFoundError):
    """There is no store, or no such dataset in it."""

    errno = errno.ENOENT


class DatasetNotFound(StoreNotFound, KeyError):
    """The store has no such dataset; the message names those it has."""


class StoreLocked(StoreError):
    """Another process is ingesting into the dataset; the message names it."""


class StoreDamaged(StoreError):
    """The pages of a dataset's file are damaged, or it was not copied whole."""


class StoreFull(StoreError, OSError):
    """The disk, the map or a limit set by the user has no room for the next record."""

    errno = errno.ENOSPC


class StoreMismatch(StoreError, ValueError):
    """The store holds features of another encoder, sampling or format than the one asked for."""


class FeatureNotFound(FeatstoreError, KeyError):
    """The video has no finished features in this feature set, or there is no such set."""


class RecordError(FeatstoreError, ValueError):
    """The bytes of a record are damaged, truncated or of a format from the future."""

    remedy = "run featstore check --repair, then ingest the video again"


class QuantizeError(FeatstoreError, ValueError):
    """Features that cannot be stored as asked: beyond the range of the stored dtype."""


class NotFinite(QuantizeError):
    """Features that are NaN or infinite; they are neither stored nor used for answers."""


class VideoError(FeatstoreError):
    """A video cannot be decoded.

    Args:
        message: what was found.
        path: the file.
    """

    def __init__(self, message: str, path: str = "") -> None:
        """Keep the path beside the message."""
        super().__init__(message)
        self.path = path


class MissingExtra(FeatstoreError, ImportError):
    """An optional library is not installed; the message has the pip command."""


def retold(kind: str, message: str) -> FeatstoreError:
    """Return the error of class `kind` that another process put into words as `message`, remedy included."""
    error: FeatstoreError = globals()[kind](message)
    error.remedy = ""
    return error


def command_line(command: str, **options: object) -> str:
    """Return a command of featstore that can be copied into a shell, whatever is in the names.

    Args:
        command: as `ls`; empty for the options alone.
        options: by name, as `cache_dir`; several values are given one after the other, True is a flag, and what is
            empty or None is left out.

    >>> command_line("rm", cache_dir="my cache", dataset="demo", video=["a", "b"], spec="", yes=True)
    "featstore rm --cache-dir 'my cache' --dataset demo --video a --video b --yes"
    """
    words = ["featstore", command] if command else []
    for name, value in options.items():
        for each in value if isinstance(value, list) else [value]:
            words += [f"--{name.replace('_', '-')}"] if each else []
            words += [shlex.quote(str(each))] if each and each is not True else []
    return " ".join(words)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question that names what `name` may be a slip of, or nothing.

    Args:
        name: what was asked for.
        known: what there is.

    >>> did_you_mean("watr", ["fire", "water"])
    "did you mean 'water'? "
    >>> did_you_mean("water.mp4", ["fire", "lakes/water"])
    "did you mean 'lakes/water'? "
    """
    known = [*known]
    near = [there for there in known if _stem(there) == _stem(name)]
    if not near and len(known) <= _MOST_COMPARED:
        import difflib  # it takes longer than all else that is imported here

        near = difflib.get_close_matches(name, known)
    return f"did you mean {' or '.join(map(repr, near[:3]))}? " if near else ""


def explain_keywords(**elsewhere: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function answer a keyword that it does not know with a TypeError that says what it takes.

    Args:
        elsewhere: by a keyword that is often tried, where the same is said.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        code = function.__code__
        known = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        takes_others = code.co_flags & 8
        name = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def explained(*args: P.args, **named: P.kwargs) -> R:
            for keyword in named:
                if keyword in elsewhere or not (takes_others or keyword in known):
                    said = no_keyword(keyword, known)
                    hint = f"; {elsewhere[keyword]}" if keyword in elsewhere else ""
                    raise TypeError(f"{name} takes no {said}{hint}")
            return function(*args, **named)

        return explained

    return decorate


def no_keyword(keyword: str, known: Iterable[str]) -> str:
    """Return a keyword that a function does not know, what it may be a slip of, and what the function takes."""
    known = [name for name in known if name != "self"]
    return f"{keyword!r}; {did_you_mean(keyword, known)}it takes {', '.join(known)}"


def _stem(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[0]


def how_many(count: int, noun: str) -> str:
    """Return a count and what is counted, as `1 video` or `3 videos`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def plain(text: str) -> str:
    """Return `text` for printing: its lines, with control characters escaped.

    Names and reasons in a store may come from anyone: an escape sequence in one could rewrite the screen.
    """
    return "\n".join(map(plain_line, text.split("\n")))


def plain_line(text: str) -> str:
    """Return `text` as `plain` does, on one line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
