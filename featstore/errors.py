"""Every error featstore raises, as one tree.

FeatstoreError
├── CheckpointError        also ValueError; not a LongVA checkpoint, tensors missing
├── ListingError           also ValueError; the videos asked for cannot be listed: duplicate ids, unreadable manifest
├── StoreError
│   ├── StoreNotFound      also FileNotFoundError
│   │   └── DatasetNotFound    also KeyError
│   ├── StoreLocked        another writer is at work
│   ├── StoreDamaged       the file's pages cannot be what they say, or its end is missing
│   ├── StoreFull          also OSError; the map, the disk or a stated limit
│   └── StoreMismatch      also ValueError; made with another encoder, sampling or format
├── FeatureNotFound        also KeyError
├── RecordError            also ValueError; corrupt, truncated, from the future
├── QuantizeError          also ValueError; features that cannot be stored as asked
│   └── NotFinite          features that are NaN or infinite
├── VideoError             cannot be decoded; carries the path
└── MissingExtra           also ImportError; names the pip command

Each message says what was found, what was expected and what to do.
"""

from __future__ import annotations

import errno


class FeatstoreError(Exception):
    """Base of every error featstore raises on purpose."""

    def __str__(self) -> str:
        """Return the message itself, also where KeyError would quote it."""
        return str(self.args[0]) if self.args else ""


class CheckpointError(FeatstoreError, ValueError):
    """A checkpoint is not LongVA's, or lacks what its vision side needs."""


class ListingError(FeatstoreError, ValueError):
    """The videos to ingest cannot be listed: duplicate ids, a manifest that cannot be read."""


class StoreError(FeatstoreError):
    """A store cannot be opened, read or written."""


class StoreNotFound(StoreError, FileNotFoundError):
    """No store, or no such dataset in it."""

    errno = errno.ENOENT


class DatasetNotFound(StoreNotFound, KeyError):
    """The store is there and has no such dataset; the message names those it has."""


class StoreLocked(StoreError):
    """Another process is ingesting into the dataset; the message names it."""


class StoreDamaged(StoreError):
    """The pages of a dataset's file are damaged, or it was not copied whole."""


class StoreFull(StoreError, OSError):
    """The disk, the map or a limit the user set leaves no room for the next record."""

    errno = errno.ENOSPC


class StoreMismatch(StoreError, ValueError):
    """The store holds features of another encoder, sampling or format than the one asked for."""


class FeatureNotFound(FeatstoreError, KeyError):
    """The video's features were never finished in this feature set."""


class RecordError(FeatstoreError, ValueError):
    """The bytes of a record are damaged, truncated or of a format from the future."""


class QuantizeError(FeatstoreError, ValueError):
    """Features that cannot be stored as asked: beyond the numbers of what they are stored as."""


class NotFinite(QuantizeError):
    """Features that are NaN or infinite; they are neither stored nor answered from."""


class VideoError(FeatstoreError):
    """A video cannot be decoded; `path` names the file."""

    def __init__(self, message: str, path: str = "") -> None:
        """Keep the path beside the message."""
        super().__init__(message)
        self.path = path


class MissingExtra(FeatstoreError, ImportError):
    """An optional library is not installed; the message holds the pip command."""


def plain(text: str) -> str:
    """Return `text` as it may be printed: its lines, with what would steer a terminal escaped.

    Names and reasons in a store may be anybody's: an escape sequence in one could rewrite what the screen says.
    """
    return "\n".join(map(plain_line, text.split("\n")))


def plain_line(text: str) -> str:
    """Return `text` as `plain` does, on one line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
