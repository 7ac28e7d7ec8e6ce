"""Export: the features of one video as a file, or those of a dataset as a folder of files with an index."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from featstore.errors import (
    FeatstoreError,
    FeatureNotFound,
    RecordError,
    StoreFull,
    StoreMismatch,
)
from featstore.fields import to_plain
from featstore.formats.facts import record_facts
from featstore.formats.feature_files import FORMATS, write_features
from featstore.formats.names import INDEX, SET_FILE
from featstore.store.paths import because
from featstore.store.rows import video_key
from featstore.system.filesystems import DISK_FULL_ERRNOS
from featstore.system.fsync import make_durable_folder, write_atomically

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable

    from featstore.records.features import Features
    from featstore.records.header import Header
    from featstore.store.dataset import Dataset
    from featstore.store.rows import FeatureSet


def save_features(features: Features, path: str | os.PathLike[str]) -> str:
    """Write features to a file, which appears whole or not at all and survives a power loss.

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
    with write_atomically(target) as file:
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
        suffix: the files' format, one of `FORMATS`; see `save_features`.
        patterns: ids of videos, or patterns of them with `*` and `?`; by default all videos.
        stop: set it to end early.
        on_progress: called after each video.

    Returns:
        What was done, and which records are damaged.

    Raises:
        FeatureNotFound: no video fits one of the patterns.
        StoreMismatch: the folder holds an export of another feature set or format.
        StoreFull: the disk is full; what was written stays, and the same call goes on.
        FeatstoreError: the folder cannot be written.
        ValueError: `suffix` is not a format.
    """
    if suffix not in FORMATS:
        raise ValueError(f"{suffix!r} is not a format; use one of {', '.join(FORMATS)}")
    dataset = dataset.pinned()
    summary = ExportSummary(dataset.name, dataset.feature_set.spec.digest, os.fspath(folder))
    videos = _chosen(dataset, list(patterns))
    summary.total = len(videos)
    try:
        make_durable_folder(Path(folder))
        with _Index(Path(folder), summary, suffix) as index:
            index.describe(dataset.feature_set)
            for video in videos:
                if stop is not None and stop.is_set():
                    summary.interrupted = True
                    break
                _export(dataset, video, index, summary)
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
                f"{dataset.feature_set.spec.digest[:8]}; featstore ls --dataset {dataset.name} lists them"
            )
        chosen.update(fitting)
    return sorted(chosen)


def _export(dataset: Dataset, video: str, index: _Index, summary: ExportSummary) -> None:
    entry = dataset.entry(video)
    if entry is not None and index.has(video, entry.created):
        summary.skipped += 1
        return
    try:
        features = dataset[video]
        target = index.folder / index.file_name(video)
        checksum = save_features(features, target)
    except (RecordError, FeatureNotFound) as exc:
        summary.failures.append((video, str(exc)))
        return
    index.add(features.header, checksum)
    summary.exported += 1
    summary.file_bytes += target.stat().st_size


class _Index:
    """The lines of a folder's index; a line is added when its file is whole and durable."""

    def __init__(self, folder: Path, summary: ExportSummary, suffix: str) -> None:
        self.folder = folder
        self._summary, self._suffix = summary, suffix
        # Videos of files that are there, and when their records were made.
        self._known: dict[str, float] = {}
        self._file: IO[bytes] | None = None

    def __enter__(self) -> _Index:
        path = self.folder / INDEX
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
        for line in lines:
            self._read(line)
        self._file = path.open("ab")
        if lines[-1]:  # cut short by a kill
            self._file.write(b"\n")
        return self

    def __exit__(self, *exc: object) -> None:
        if self._file is not None:
            with self._file as file:
                file.flush()
                os.fsync(file.fileno())

    def _read(self, line: bytes) -> None:
        try:
            found = json.loads(line)
            video, made = found["video_id"], found["created"]
            here = found["dataset"], found["feature_set"], Path(found["file"]).suffix
        except (ValueError, KeyError, TypeError):
            return  # its file is written again
        wanted = self._summary.dataset, self._summary.feature_set, self._suffix
        if here != wanted:
            raise StoreMismatch(
                f"{self.folder} holds an export of dataset {here[0]!r}, feature set {str(here[1])[:8]}, as {here[2]}, "
                f"not of {wanted[0]!r}, {wanted[1][:8]}, as {wanted[2]}; choose another folder"
            )
        self._known[video] = made

    def file_name(self, video: str) -> str:
        """Return the name of a video's file."""
        return video_key("", video).decode() + self._suffix

    def has(self, video: str, created: float) -> bool:
        """Return whether the file of the record that was made then is there."""
        return self._known.get(video) == created and (self.folder / self.file_name(video)).is_file()

    def describe(self, row: FeatureSet) -> None:
        """Write the file that says what the features are."""
        with write_atomically(self.folder / SET_FILE) as file:
            file.write(json.dumps(to_plain(row), indent=2).encode())

    def add(self, header: Header, checksum: str) -> None:
        """Add the line of a file that was written."""
        assert self._file is not None
        named = {"file": self.file_name(header.video_id), "values_xxh3_128": checksum}
        facts: dict[str, Any] = named | record_facts(header)
        self._file.write(json.dumps(facts).encode() + b"\n")
        self._file.flush()
