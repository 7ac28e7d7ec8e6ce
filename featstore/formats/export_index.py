"""The index of an exported folder: which file is which video's, and what its record says."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from featstore.errors import StoreMismatch
from featstore.fields import to_plain
from featstore.formats.facts import record_facts
from featstore.formats.names import INDEX, SET_FILE
from featstore.sampling import check_nframe
from featstore.system.fsync import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable

    from featstore.records.header import Header
    from featstore.store.rows import FeatureSet

_KNOWN = ("video_id", "video_path", "layout", "nframe", "decoder", "doubt")


def made_at(facts: dict[str, Any]) -> float:
    """Return when the record of a line was made, seconds since 1970; KeyError or TypeError if it does not say."""
    # Lines of earlier releases have it in `created`.
    made = facts["created_seconds"] if "created_seconds" in facts else facts["created"]
    if type(made) not in (int, float):
        raise TypeError(f"created is {made!r:.80}, not a number")
    return float(made)


def plain_header(facts: dict[str, Any], unknown: dict[str, Any]) -> dict[str, Any]:
    """Return of the plain values of a header those that are not stored otherwise, as a line has them.

    Args:
        facts: the line.
        unknown: `dtype`, `error` and `source` for a record of which nobody knew them.

    Raises:
        KeyError, TypeError, ValueError, struct.error: the line is no such.
    """
    plain = {name: facts[name] for name in _KNOWN}
    unknown = to_plain(unknown) | {"total_frames": 1, "fps": 0.0}
    plain |= {n: unknown[n] if facts[n] is None else facts[n] for n in unknown}
    if "source_bytes" in plain["source"]:  # earlier releases have it as the header has
        source = dict(plain["source"])
        plain["source"] = {"size": source.pop("source_bytes"), **source}
    indices = facts["frame_indices"]
    if indices is None:
        indices = [0] * check_nframe(facts["frames"])
    frames = struct.pack(f"<{len(indices)}I", *indices)
    return plain | {"frame_indices": frames, "created": made_at(facts)}


class FolderIndex:
    """The lines of a folder's index; a line is added when its file is whole and durable.

    Attributes:
        folder: the folder.
        row: the feature set that is exported.
    """

    def __init__(self, folder: Path, dataset: str, row: FeatureSet, suffix: str) -> None:
        """Read nothing yet.

        Args:
            folder: the folder, which exists.
            dataset: name of the dataset that is exported.
            row: its feature set.
            suffix: of the files.
        """
        self.folder, self.row = folder, row
        self._wanted = dataset, row.spec.digest, suffix
        # Videos of files that are there: their file, and when their records were made.
        self._known: dict[str, tuple[str, float]] = {}
        self._file: IO[bytes] | None = None

    def __enter__(self) -> FolderIndex:
        """Read the index, and write what the features are; raise StoreMismatch if the folder is another export's."""
        path = self.folder / INDEX
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
        for line in lines:
            self._read(line)
        self._file = path.open("ab")
        if lines[-1]:  # cut short by a kill
            self._file.write(b"\n")
        with write_atomically(self.folder / SET_FILE) as file:
            file.write(json.dumps(to_plain(self.row), indent=2).encode())
        return self

    def __exit__(self, *exc: object) -> None:
        """Make the lines durable."""
        if self._file is not None:
            with self._file as file:
                file.flush()
                os.fsync(file.fileno())

    def _read(self, line: bytes) -> None:
        try:
            found = json.loads(line)
            video, made, file = found["video_id"], made_at(found), found["file"]
            here = found["dataset"], found["feature_set"], Path(file).suffix
        except (ValueError, KeyError, TypeError, RecursionError):
            return  # its file is written again
        wanted = self._wanted
        if here != wanted:
            raise StoreMismatch(
                f"{self.folder} holds an export of dataset {here[0]!r}, feature set {str(here[1])[:8]}, as {here[2]}, "
                f"not of {wanted[0]!r}, {wanted[1][:8]}, as {wanted[2]}; choose another folder"
            )
        self._known[video] = file, made

    def file_of(self, video: str) -> str:
        """Return the file in which the index says that a video is; empty if it does not."""
        return self._known.get(video, ("", 0.0))[0]

    def has(self, video: str, created: float) -> bool:
        """Return whether the file of the record that was made then is there."""
        file, made = self._known.get(video, ("", None))
        return made == created and (self.folder / file).is_file()

    def videos(self) -> set[str]:
        """Return the videos that the index names."""
        return set(self._known)

    def files(self) -> set[str]:
        """Return the files that the index names."""
        return {file for file, _ in self._known.values()}

    def add(self, file: str, written: Iterable[tuple[Header, str]]) -> None:
        """Add the lines of a file that was written.

        Args:
            file: its name in the folder.
            written: what the records in it say, and the checksums of the values.
        """
        assert self._file is not None
        for header, checksum in written:
            named = {"file": file, "values_xxh3_128": checksum}
            # `created` is not exact; this is, and tells a record from one that was made again.
            exact = {"created_seconds": header.created}
            facts: dict[str, Any] = named | record_facts(header) | exact
            self._file.write(json.dumps(facts).encode() + b"\n")
            self._known[header.video_id] = file, header.created
        self._file.flush()
