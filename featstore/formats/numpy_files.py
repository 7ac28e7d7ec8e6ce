"""`.npy`: the features themselves, float32. `.npz`: what is stored of them, with its scales and metadata."""

from __future__ import annotations

import zipfile
from contextlib import contextmanager
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from featstore.formats.file_content import (
    FileContent,
    arrays_of,
    from_arrays,
    metadata_of,
    read_metadata,
)
from featstore.records.storage import MAX_PAYLOAD_BYTES
from featstore.system.filesystems import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from featstore.records.features import Features


def write_npy(features: Features, file: IO[bytes]) -> list[NDArray[Any]]:
    """Write features, float32 (rows, width), and return what was written."""
    from numpy.lib import format as npy

    values = features.dequantize()
    npy.write_array_header_1_0(file, npy.header_data_from_array_1_0(values))
    file.write(values.data)
    return [values]


def read_npy(path: Path) -> FileContent:
    """Return the array of a file, mapped; raise ValueError or OSError if it cannot be read."""
    with _plain_words():
        return FileContent(_native(np.load(path, mmap_mode="r", allow_pickle=False)))


def write_npz(features: Features, file: IO[bytes]) -> list[NDArray[Any]]:
    """Write stored values, scales and metadata, and return the arrays."""
    arrays: dict[str, Any] = arrays_of(features)
    np.savez(file, **arrays, featstore=np.array(metadata_of(features)))
    return list(arrays.values())


def read_npz(path: Path) -> FileContent:
    """Return the arrays of a file, whose checksums are verified; raise as `read_npy`."""
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > MAX_PAYLOAD_BYTES:  # what was compressed may be a thousand times its file
        raise ValueError(
            f"it holds {format_bytes(size)}, a record takes {format_bytes(MAX_PAYLOAD_BYTES)}"
        )
    with _plain_words(), np.load(path, allow_pickle=False) as found:
        arrays = {name: found[name] for name in found.files}
    text = arrays.get("featstore")
    facts = read_metadata(str(text)) if text is not None and text.dtype.kind == "U" else None
    found = from_arrays(
        {name: _native(array) for name, array in arrays.items() if array.dtype.kind != "U"}
    )
    return replace(found, facts=facts)


@contextmanager
def _plain_words() -> Iterator[None]:
    """Say of what numpy takes for a pickle that it is none of ours, not how to load it all the same."""
    try:
        yield
    except ValueError as exc:
        if "pickle" not in str(exc) and "Python objects" not in str(exc):
            raise
        raise ValueError("it is no array of plain numbers, and nothing in it is run") from exc


def _native(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
