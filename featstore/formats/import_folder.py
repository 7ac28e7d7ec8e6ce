"""Import: a folder of files of features becomes records of a dataset, a video a file."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from featstore import defaults
from featstore.errors import (
    FeatstoreError,
    ListingError,
    QuantizeError,
    RecordError,
    StoreFull,
    StoreMismatch,
    StoreNotFound,
)
from featstore.formats.imported import ImportedFolder, read_video
from featstore.spec import UNKNOWN_PARTS
from featstore.store import FeatureWriter, ingest_lock
from featstore.store.catalog import open_dataset, read_entry
from featstore.store.maintenance.merge import add_set_of
from featstore.store.paths import check_video_id, dataset_path, make_folder
from featstore.store.rows import Entry, video_key

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    from featstore.formats.imported import ImportedVideo
    from featstore.records.header import Header
    from featstore.store.rows import FeatureSet


@dataclass
class ImportSummary:
    """What an import came to, or how far it is.

    Args:
        dataset: the dataset's name.
        folder: the folder of the files.
        dry_run: whether nothing was stored.
        total: number of files.
        imported: videos stored now, or that would be.
        skipped: videos that were stored before, from the same file.
        newer: videos left as they are, for what is stored was made after what was exported.
        record_bytes: bytes of the records stored now; of a dry run, of their values and scales.
        sets: videos of this folder by the digest of their feature set, those stored before included.
        unknown: what is not known of the sets that are marked as imported; empty if none is.
        failures: file and reason of each that was not imported.
        interrupted: whether it was told to stop before the last file.
        full: why there was no room; empty if there was.
    """

    dataset: str
    folder: str
    dry_run: bool = False
    total: int = 0
    imported: int = 0
    skipped: int = 0
    newer: int = 0
    record_bytes: int = 0
    sets: dict[str, int] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    failures: list[tuple[str, str]] = field(default_factory=list)
    interrupted: bool = False
    full: str = ""


def import_folder(
    folder: str | os.PathLike[str],
    suffix: str,
    cache_dir: str | os.PathLike[str],
    dataset: str,
    *,
    nframe: int | None = None,
    videos_root: str | None = None,
    replace_newer: bool = False,
    dry_run: bool = False,
    min_free: int = defaults.MIN_FREE_BYTES,
    max_size: int | None = None,
    lock_wait: float = defaults.LOCK_WAIT,
    stop: threading.Event | None = None,
    on_progress: Callable[[ImportSummary], None] = lambda summary: None,
) -> ImportSummary:
    """Store the features in the files of a folder, as they are: int8 with its scales, or floats.

    What featstore exported goes back to its own feature set, if the folder still has the index. Other features go to
    sets that are marked as imported, one for each shape and each model signature or folder: a model takes those only if
    it is told to. A video whose file has not changed since it was imported is skipped, so an import that was stopped or
    killed goes on when it is called again.

    Args:
        folder: the files, in folders of any depth; of `.pt` files also the folder that holds one of the dataset's name.
        suffix: the files' format, one of `featstore.formats.feature_files.FORMATS`.
        cache_dir: the cache directory.
        dataset: the dataset's name.
        nframe: number of frames of each video, for files that do not say it: then rows divide among the frames.
        videos_root: make the id of a video in a `.pt` file its path relative to this folder, without suffix; by default
            the file name without suffix. Other files are named by their path in `folder`.
        replace_newer: also replace records that were made after those that were exported.
        dry_run: read what the files are, and store nothing.
        min_free: bytes that stay free on the disk.
        max_size: bytes that `cache_dir` may take, None for no limit.
        lock_wait: seconds to wait for an ingest into the dataset.
        stop: set it to end early.
        on_progress: called after each file, and at the end, when all of them are committed.

    Returns:
        What was stored, and which files were not and why.

    Raises:
        ListingError: there is no such file in the folder, or its index cannot be read.
        StoreLocked: an ingest is at work on the dataset.
        StoreError: the dataset cannot be written.
    """
    path, inner = Path(folder), Path(folder) / dataset
    path = inner if suffix == ".pt" and inner.is_dir() else path
    source = ImportedFolder.open(path, dataset, nframe=nframe, root=videos_root)
    files = sorted(_files(path, suffix))
    if not files:
        if next(path.glob("data/*.parquet"), None):
            raise ListingError(
                f"{path} is a data set of Hugging Face (export --to hf), which is not imported; import an export to "
                "safetensors or npz, or copy the dataset with featstore cp"
            )
        raise ListingError(f"there is no {suffix} file in {path}; name the folder that holds them")
    summary = ImportSummary(dataset, os.fspath(path), dry_run, len(files))
    here = dataset_path(cache_dir, dataset)
    with ExitStack() as stack:
        writer = None
        if not dry_run:
            make_folder(here)
            stack.enter_context(ingest_lock(here, wait=lock_wait))
            writer = stack.enter_context(
                FeatureWriter(cache_dir, dataset, min_free=min_free, max_size=max_size)
            )
        run = _Import(source, cache_dir, writer, summary, replace_newer)
        try:
            for file in files:
                if stop is not None and stop.is_set():
                    summary.interrupted = True
                    break
                run.take(file)
                on_progress(summary)
        except StoreFull as exc:
            summary.full = str(exc)
        run.commit()
        on_progress(summary)
    return summary


def _files(folder: Path, suffix: str) -> Iterator[Path]:
    def refuse(exc: OSError) -> None:
        raise ListingError(f"{folder} cannot be read: {exc}") from exc

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(place, name)
            if path.suffix == suffix and not name.startswith(".") and path.is_file():
                yield path


class _Import:
    def __init__(
        self,
        source: ImportedFolder,
        cache_dir: str | os.PathLike[str],
        writer: FeatureWriter | None,
        summary: ImportSummary,
        replace_newer: bool,
    ) -> None:
        self._source, self._cache_dir = source, cache_dir
        self._writer, self._summary = writer, summary
        self._replace_newer = replace_newer
        self._seen: dict[bytes, Path] = {}
        self._added: set[str] = set()

    def take(self, file: Path) -> None:
        """Put the features of a file, unless they are there or cannot be."""
        try:
            video = read_video(self._source, file)
            header = video.header
            check_video_id(header.video_id)
            key = video_key(header.spec, header.video_id)
            if key in self._seen:
                raise ValueError(
                    f"it is of video {header.video_id!r}, as {self._seen[key]} is; with --videos-root "
                    "(videos_root=) ids are whole paths"
                )
            made, spec = self._made(key), video.feature_set.spec
            if made == header.created:
                self._summary.skipped += 1
            elif made > header.created and not (self._replace_newer or spec.imported):
                self._summary.newer += 1
            else:
                self._put(video)
        except (RecordError, QuantizeError, StoreMismatch) as exc:
            # The remedy of a record is for one that is stored already.
            self._summary.failures.append((str(file), exc.found))
            return
        except FeatstoreError:
            raise
        except (ValueError, OSError) as exc:
            self._summary.failures.append((str(file), str(exc)))
            return
        self._seen[key] = file
        self._count(video.feature_set, header)

    def commit(self) -> None:
        """Make durable what was put."""
        for row in self._writer.commit() if self._writer else ():
            assert isinstance(row, Entry)
            self._summary.imported += 1
            self._summary.record_bytes += row.record_bytes

    def _put(self, video: ImportedVideo) -> None:
        if self._writer is None:
            self._summary.imported += 1
            self._summary.record_bytes += video.header.raw_bytes + video.header.scale_bytes
            return
        packed = video.pack()
        row = video.feature_set
        if row.spec.digest not in self._added:
            add_set_of(self._writer, row)
            self._added.add(row.spec.digest)
        self._writer.put(*packed)
        if self._writer.due:
            self.commit()

    def _made(self, key: bytes) -> float:
        """Return when the record that is stored was made; less than any time if there is none."""
        try:
            entry = read_entry(open_dataset(self._cache_dir, self._source.dataset), key)
        except StoreNotFound:  # of a dry run
            entry = None
        return -inf if entry is None else entry.created

    def _count(self, row: FeatureSet, header: Header) -> None:
        sets, digest = self._summary.sets, row.spec.digest
        sets[digest] = sets.get(digest, 0) + 1
        if not row.spec.imported:
            return
        told = self._summary.unknown
        self._summary.unknown = told or UNKNOWN_PARTS
        if row.spec.encoder.geometry.by_video and len(told) <= len(UNKNOWN_PARTS):
            frames = f" of {header.nframe} frames" if header.nframe > 1 else ""
            which = f"which rows are a frame's (as in {header.layout.rows} rows{frames})"
            self._summary.unknown = (*UNKNOWN_PARTS, which)
