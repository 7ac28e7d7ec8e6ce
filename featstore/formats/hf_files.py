"""A data set of Hugging Face: Parquet files that `datasets.load_dataset(folder)` reads, a row a video.

A row has `video_id`; `values`, the bytes of the stored values, whose `dtype` and `shape` are beside them; int8's
scales, `token_scale`, `channel_scale` or `tensor_scale`, whose product times the values are the features; and
`featstore`, what the record says, as JSON. Bytes, not lists: Parquet has no integers of 8 bits, and a video has
millions.
"""

from __future__ import annotations

import re
from typing import IO, TYPE_CHECKING, Any

from featstore.errors import MissingExtra
from featstore.formats.file_content import arrays_of, checksum_of, metadata_of
from featstore.system.fsync import make_durable_folder, write_atomically

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from featstore.records.features import Features

PARQUET = ".parquet"
FOLDER = "data"
_CARD = b"""---
configs:
- config_name: default
  data_files: data/*.parquet
---

Features of videos, exported by featstore, a row a video:

    numpy.frombuffer(row["values"], row["dtype"]).reshape(row["shape"])

times the scales that are not None are the features; `token_scale` has a value a row of the shape, `channel_scale` one a
column. `uint16` is the bits of bfloat16. `featstore` is JSON: what is known of the video and its features.
`feature_set.json` says what computed them.
"""
_SCALES = ("token_scale", "channel_scale", "tensor_scale")


def require_pyarrow() -> None:
    """Raise MissingExtra if pyarrow is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as exc:
        raise MissingExtra(
            "pyarrow is not installed, which writes Parquet: pip install 'featstore[hf]'"
        ) from exc


def prepare_folder(folder: Path, keep: Collection[str]) -> None:
    """Make what is around the files, and remove those that the index no longer names; raise OSError.

    Args:
        folder: of the export.
        keep: files in it that are whole and up to date.
    """
    make_durable_folder(folder / FOLDER)
    for path in (folder / FOLDER).iterdir():
        is_ours = re.fullmatch(r"[0-9a-f]{32}\.parquet", path.name)
        if is_ours and f"{FOLDER}/{path.name}" not in keep:
            path.unlink()
    with write_atomically(folder / "README.md") as file:
        file.write(_CARD)


class ParquetFile:
    """A file of rows, each a row group, so that no more than one video is in memory. Usable in `with`."""

    def __init__(self, file: IO[bytes]) -> None:
        """Begin a file.

        Args:
            file: a new file, open for writing.
        """
        import pyarrow as pa
        from pyarrow import parquet

        self._schema = pa.schema(
            [
                ("video_id", pa.string()),
                ("values", pa.large_binary()),
                ("dtype", pa.string()),
                ("shape", pa.list_(pa.int64())),
                *((name, pa.list_(pa.float32())) for name in _SCALES),
                ("featstore", pa.string()),
            ]
        )
        # The values of features neither repeat nor shrink.
        self._writer = parquet.ParquetWriter(
            file, self._schema, compression="none", use_dictionary=False, write_statistics=False
        )

    def __enter__(self) -> ParquetFile:
        """Return the file itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Write the end of the file."""
        self._writer.close()

    def add(self, features: Features) -> str:
        """Write the row of a video, and return the checksum of its values and scales."""
        import pyarrow as pa

        arrays = arrays_of(features)
        data = arrays.pop("data")
        row: dict[str, Any] = {
            # A file name's bytes that are not text are in `featstore` as they are, and here as question marks.
            "video_id": features.header.video_id.encode(errors="replace").decode(),
            "values": data.tobytes(),
            "dtype": str(data.dtype),
            "shape": list(data.shape),
            "featstore": metadata_of(features),
            **{name: arrays[name].ravel() if name in arrays else None for name in _SCALES},
        }
        self._writer.write_table(pa.Table.from_pylist([row], schema=self._schema))
        return checksum_of([data, *arrays.values()])
