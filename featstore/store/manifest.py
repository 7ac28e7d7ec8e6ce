"""A dataset's manifest: which dataset the file is, its default feature set, and how much each set has.

The counts are kept by each commit, so that nobody reads a million rows to count them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from featstore.errors import StoreDamaged, StoreMismatch, command_line
from featstore.store.engine.settings import ENGINE
from featstore.store.paths import DATA_FILE
from featstore.store.rows import build_row, unpack_row

if TYPE_CHECKING:
    from pathlib import Path

STORE_FORMAT = 2
MANIFEST_KEY = b"manifest"


@dataclass(frozen=True)
class Counts:
    """What a feature set has: videos, failures, frames encoded, bytes of records."""

    videos: int = 0
    failures: int = 0
    frames: int = 0
    record_bytes: int = 0


@dataclass(frozen=True)
class Manifest:
    """Identifies a dataset's file and counts what is in it.

    Args:
        dataset: the dataset's name.
        created: seconds since 1970.
        default: digest of the feature set that is meant if none is named; empty as long as there is none.
        sets: the counts of each feature set by digest, oldest first.
        format: store format.
        engine: what wrote the file.
    """

    dataset: str
    created: float
    default: str = ""
    sets: dict[str, Counts] = field(default_factory=dict)
    format: int = STORE_FORMAT
    engine: str = ENGINE


def unpack_manifest(data: bytes | None, path: Path) -> Manifest:
    """Return the manifest in the folder `path`; StoreMismatch if it is not ours, StoreDamaged if unreadable."""
    repair = command_line("check", repair=True, cache_dir=path.parent, dataset=path.name)
    if data is None:
        raise StoreMismatch(
            f"{path} holds an LMDB file but no featstore dataset",
            remedy=f"ingest into another --cache-dir; if it was one, {repair} may mend it",
        )
    try:
        plain = unpack_row(data)
    except StoreDamaged as exc:
        raise StoreDamaged(
            f"the manifest of dataset {path.name!r} in {path / DATA_FILE} cannot be read, it is damaged",
            remedy=f"have it written again from the rows: {repair}",
        ) from exc
    found = plain.get("format") if isinstance(plain, dict) else None
    if found != STORE_FORMAT:
        newer = isinstance(found, int) and found > STORE_FORMAT
        raise StoreMismatch(
            f"{path} has store format {found!r}, this featstore reads format {STORE_FORMAT}",
            remedy="update featstore, or ingest into another --cache-dir"
            if newer
            else "it was made before the first release: ingest its videos again, into another --cache-dir",
        )
    return build_row(Manifest, plain)


def check_name(manifest: Manifest, path: Path, dataset: str | None) -> None:
    """Raise StoreMismatch if the manifest in the folder `path` is not of `dataset`."""
    if dataset is not None and manifest.dataset != dataset:
        remedy = "rename it back"
        if (path.with_name(manifest.dataset) / DATA_FILE).exists():
            remedy = (
                "rename it back; if it is a copy of the folder of that name, which is there, remove it, or move it to "
                "another cache directory under that name"
            )
        raise StoreMismatch(
            f"{path} holds the dataset {manifest.dataset!r}; its folder must have that name",
            remedy=remedy,
        )
