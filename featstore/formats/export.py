"""Export: the features of one video as a file, or those of a dataset as a folder of files with an index."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from featstore.errors import (
    FeatstoreError,
    FeatureNotFound,
    RecordError,
    StoreFull,
    did_you_mean,
)
from featstore.formats.export_index import FolderIndex
from featstore.formats.feature_files import FORMATS, write_features
from featstore.formats.hf_files import (
    FOLDER,
    PARQUET,
    ParquetFile,
    prepare_folder,
    require_pyarrow,
)
from featstore.store.paths import because
from featstore.store.rows import video_key
from featstore.system.filesystems import DISK_FULL_ERRNOS
from featstore.system.fsync import make_durable_folder, open_target, write_atomically

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Iterator

    from featstore.records.features import Features
    from featstore.records.header import Header
    from featstore.store.dataset import Dataset


def save_features(features: Features, path: str | os.PathLike[str]) -> str:
    """Write features to a file, which appears whole or not at all and survives a power loss; or to a pipe.

    A `.npy` file holds the dequantized features, float32 (rows, width). `.safetensors` and `.npz` hold what is stored:
    the array `data`, in bf16 as its bits, uint16, and for int8 its scales, `token_scale` (rows, 1), `channel_scale`
    (1, width) or both, or `tensor_scale` (1, 1); values times the product of the scales are the features. What the
    record says about them is JSON: safetensors' metadata `featstore`, the text `featstore` in an `.npz`. A `.pt` file
    is torch.load's, with weights_only=True: a dict of `vision_embeds`, times `scale` the features, `quantization` (as
    which values they are there: int8 with two scales as fp32), `video_path`, `nframe`, `dataset`, `model_signature`
    (the feature set), `shape`, and the same JSON.

    Args:
        features: the features of one video.
        path: the file, with the suffix of the format.

    Returns:
        The checksum of the values and scales in it, xxh3-128.

    Raises:
        ValueError: the suffix is another one.
        OSError: the file cannot be written.
    """
    target = Path(path)
    if target.suffix not in FORMATS:
        raise ValueError(
            f"{target} ends in {target.suffix!r}; features are written as {', '.join(FORMATS)}"
        )
    with open_target(target) as file:
        return write_features(features, file, target.suffix)


@dataclass
class ExportSummary:
    """What an export has done so far.

    Args:
        dataset: the dataset's name.
        feature_set: digest of its feature set.
        folder: where the files are.
        total: videos that were asked for.
        exported: videos written by this call.
        skipped: videos whose file was there.
        file_bytes: bytes of the files written by this call.
        failures: id and reason of each video that could not be read.
        interrupted: whether it was told to stop before the last video.
    """

    dataset: str
    feature_set: str
    folder: str
    total: int = 0
    exported: int = 0
    skipped: int = 0
    file_bytes: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    interrupted: bool = False


def export_dataset(
    dataset: Dataset,
    folder: str | os.PathLike[str],
    suffix: str,
    *,
    patterns: Iterable[str] = (),
    shard_size: int = 0,
    stop: threading.Event | None = None,
    on_progress: Callable[[ExportSummary], None] = lambda summary: None,
) -> ExportSummary:
    """Write a file for each video of a feature set, and `index.jsonl`, a line of JSON for each file.

    A file is named by the MD5 of its video's id, since ids are not file names; its line in the index has the name,
    `file`, the checksum of what is in it, and what the record says, as `record_facts` returns it; what the features are
    is in `feature_set.json`. `featstore import` makes the same records of such a folder. A file that is there for the
    same record is left as it is, so an export that was stopped or killed goes on when it is called again.

    Args:
        dataset: as a store returns it: its default set, or one of its `sets`.
        folder: where the files go; it is made if it is missing.
        suffix: the files' format, one of `FORMATS`, see `save_features`; or `.parquet`, a data set of Hugging Face, see
            featstore.formats.hf_files.
        patterns: ids of videos, or patterns of them with `*` and `?`; by default all videos.
        shard_size: bytes of records from which on a `.parquet` file is full; by default it holds one video.
        stop: set it to end early.
        on_progress: called after each file.

    Returns:
        What was done, and which records are damaged.

    Raises:
        FeatureNotFound: no video fits one of the patterns.
        StoreMismatch: the folder holds an export of another feature set or format.
        StoreFull: the disk is full; what was written stays, and the same call goes on.
        FeatstoreError: the folder cannot be written.
        MissingExtra: pyarrow is not installed, which writes `.parquet`.
        ValueError: `suffix` is not a format.
    """
    if suffix not in (*FORMATS, PARQUET):
        raise ValueError(f"{suffix!r} is not a format; use one of {', '.join((*FORMATS, PARQUET))}")
    if suffix == PARQUET:
        require_pyarrow()
    dataset = dataset.pinned()
    row = dataset.feature_set
    summary = ExportSummary(dataset.name, row.spec.digest, os.fspath(folder))
    videos = _chosen(dataset, list(patterns))
    try:
        make_durable_folder(Path(folder))
        with FolderIndex(Path(folder), dataset.name, row, suffix) as index:
            groups = _missing(dataset, videos, index, suffix, shard_size)
            summary.total = max(len(videos), sum(map(len, groups)))
            summary.skipped = summary.total - sum(map(len, groups))
            for group in groups:
                if stop is not None and stop.is_set():
                    summary.interrupted = True
                    break
                _export(dataset, group, index, suffix, summary)
                on_progress(summary)
    except FeatstoreError:
        raise
    except OSError as exc:
        full = exc.errno in DISK_FULL_ERRNOS
        raise (StoreFull if full else FeatstoreError)(
            f"{folder} cannot be written: {because(exc)}; {summary.exported} videos were written and stay, the same "
            "command goes on once it can"
        ) from exc
    return summary


def _chosen(dataset: Dataset, patterns: list[str]) -> list[str]:
    videos = sorted(dataset)
    if not patterns:
        return videos
    chosen: set[str] = set()
    for pattern in patterns:
        fitting = [video for video in videos if video == pattern or fnmatchcase(video, pattern)]
        if not fitting:
            raise FeatureNotFound(
                f"no video of dataset {dataset.name!r} fits {pattern!r}, of {len(videos)} in feature set "
                f"{dataset.feature_set.spec.digest[:8]}; "
                f"{did_you_mean(pattern, videos)}featstore ls --dataset {dataset.name} lists them"
            )
        chosen.update(fitting)
    return sorted(chosen)


def _export(
    dataset: Dataset, videos: list[str], index: FolderIndex, suffix: str, summary: ExportSummary
) -> None:
    """Write the file of some videos, of one unless the format takes several."""
    name = video_key("", videos[0]).decode() + suffix
    name = f"{FOLDER}/{name}" if suffix == PARQUET else name
    target = index.folder / name
    written: list[tuple[Header, str]] = []
    for video in videos if suffix != PARQUET else ():
        with _noting(video, summary):
            features = dataset[video]
            written = [(features.header, save_features(features, target))]
    if suffix == PARQUET:
        with suppress(_Nothing), write_atomically(target) as file, ParquetFile(file) as out:
            for video in videos:
                with _noting(video, summary):
                    features = dataset[video]
                    written.append((features.header, out.add(features)))
            if not written:
                raise _Nothing
    if written:
        index.add(name, written)
        summary.exported += len(written)
        summary.file_bytes += target.stat().st_size


class _Nothing(Exception):
    pass


@contextmanager
def _noting(video: str, summary: ExportSummary) -> Iterator[None]:
    try:
        yield
    except (RecordError, FeatureNotFound) as exc:
        summary.failures.append((video, str(exc)))


def _missing(
    dataset: Dataset, videos: list[str], index: FolderIndex, suffix: str, shard_size: int
) -> list[list[str]]:
    """Return the videos that are not in the folder as they are in the store, by the file that they go to."""
    entries = {entry.video_id: entry for entry in dataset.entries()}

    def is_there(video: str) -> bool:
        return index.has(video, entries[video].created)

    stale = [video for video in videos if not is_there(video)]
    if suffix == PARQUET:  # what else is in a file is written again with what changed
        prepare_folder(index.folder, index.files() - {index.file_of(video) for video in stale})
        known = {*videos, *index.videos()} & entries.keys()
        stale = [video for video in sorted(known) if not is_there(video)]
    groups: list[list[str]] = []
    room = 0
    for video in stale:
        if room <= 0:
            groups.append([])
            room = shard_size
        groups[-1].append(video)
        room -= entries[video].record_bytes
    return groups
