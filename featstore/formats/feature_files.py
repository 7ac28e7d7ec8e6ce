"""The files that features are written to and read from, a format a suffix."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

from featstore.formats.file_content import FileContent, checksum_of
from featstore.formats.names import FEATURE_FILES
from featstore.formats.numpy_files import read_npy, read_npz, write_npy, write_npz
from featstore.formats.pt_files import read_pt, write_pt
from featstore.formats.safetensors_files import read_safetensors, write_safetensors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from featstore.records.features import Features

_WRITERS: dict[str, Callable[[Features, IO[bytes]], list[NDArray[Any]]]] = {
    ".safetensors": write_safetensors,
    ".npz": write_npz,
    ".npy": write_npy,
    ".pt": write_pt,
}
_READERS: dict[str, Callable[[Path], FileContent]] = {
    ".safetensors": read_safetensors,
    ".npz": read_npz,
    ".npy": read_npy,
    ".pt": read_pt,
}
FORMATS = tuple(f".{name}" for name in FEATURE_FILES)


def write_features(features: Features, file: IO[bytes], suffix: str) -> str:
    """Write the features of one video into a file.

    Args:
        features: the features.
        file: a new file, open for writing.
        suffix: of the format, one of `FORMATS`.

    Returns:
        The checksum of the values and scales in the file, as `FileContent.checksum` gives it.
    """
    return checksum_of(_WRITERS[suffix](features, file))


def read_features(path: Path) -> FileContent:
    """Return what a file of features holds.

    Args:
        path: the file, with a suffix of `FORMATS`.

    Raises:
        ValueError: it is damaged, or not a file of features.
        OSError: it cannot be read.
    """
    try:
        return _READERS[path.suffix](path)
    except (ValueError, OSError, ImportError):
        raise
    except (
        Exception
    ) as exc:  # numpy, zipfile and torch raise a dozen unrelated types on damaged files
        raise ValueError(f"it cannot be read: {exc!r:.200}") from exc
