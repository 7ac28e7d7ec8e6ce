"""A listing of videos, minus what is stored already: the work of an ingest."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featstore.decoding.video_file import VIDEO_SUFFIXES, Video, name_video, was_replaced
from featstore.errors import ListingError
from featstore.store.catalog import Entry, Failure, read_entry, read_failure, stored_spec, video_key
from featstore.store.paths import check_video_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from featstore.spec import FeatureSpec
    from featstore.store import Snapshot

MAX_MANIFEST_BYTES = 256 << 20  # a million videos take some 100 MB


@dataclass(frozen=True)
class Plan:
    """What an ingest has to do.

    todo: videos to encode, those whose file was replaced since among them. stored: done already. failed_before: left
    out because an earlier ingest failed on them. replaced: ids of those in todo that are stored from another file.
    """

    todo: list[Video] = field(default_factory=list)
    stored: list[Video] = field(default_factory=list)
    failed_before: list[Failure] = field(default_factory=list)
    replaced: frozenset[str] = frozenset()


def list_videos(places: Iterable[str | os.PathLike[str]]) -> list[Video]:
    """Return the videos in folders and files, by id; a folder's are named by their path in it, without the suffix.

    Links to folders are not followed. Raises ListingError where a place is not there or holds no video, or a folder in
    it cannot be read.
    """
    videos: list[Video] = []
    for given in places:
        place = Path(given)
        if not os.fspath(given):
            raise ListingError("a place of videos is empty; name a folder or a video file")
        found = list(_walk(place)) if _is_folder(place) else [_named(place, Path(place.name))]
        if not found:
            raise ListingError(
                f"{place} holds no video: no name in it ends in {' '.join(sorted(VIDEO_SUFFIXES))}"
            )
        videos += found
    return check_listing(videos)


def read_listing(file: str | os.PathLike[str]) -> list[Video]:
    """Return the videos of a manifest: JSONL, CSV or TSV with `video_id` and `path`, relative to the manifest's folder.

    Raises ListingError, which names the line, where one cannot be read.
    """
    file = Path(file)
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".tsv": _read_csv}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise ListingError(f"{file} ends in {file.suffix!r}; a manifest is .jsonl, .csv or .tsv")
    try:
        found = os.stat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_MANIFEST_BYTES:
            raise ListingError(
                f"{file} has {found.st_size} bytes, or is no file; a manifest is one of at most {MAX_MANIFEST_BYTES}"
            )
        videos = [_listed(file, line, row) for line, row in reader(file)]
    except ListingError:
        raise
    except UnicodeDecodeError as exc:
        raise ListingError(f"{file} is not UTF-8: {exc}; save it as UTF-8, uncompressed") from exc
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
        raise ListingError(f"{file} cannot be read: {exc}") from exc
    if not videos:
        raise ListingError(f"{file} names no video")
    return check_listing(videos)


def _listed(file: Path, line: int, row: dict[str, Any]) -> Video:
    video_id, path = row.get("video_id"), row.get("path")
    if not (isinstance(video_id, str) and isinstance(path, str) and path and "\0" not in path):
        raise ListingError(
            f"{file}, line {line}: found {repr(row)[:120]}; each row needs video_id and path, both strings that can "
            "be names"
        )
    return Video(video_id, os.path.join(file.parent, path))


def check_listing(videos: list[Video]) -> list[Video]:
    """Return `videos`, each once; raise ListingError where an id stands for several files or cannot be one."""
    seen: dict[str, Video] = {}
    twice: list[str] = []
    for video in videos:
        try:
            check_video_id(video.video_id)
        except ValueError as exc:
            raise ListingError(f"{video.path}: {exc}; give it an id in a manifest") from exc
        first = seen.setdefault(video.video_id, video)
        if first is not video and first.path != video.path:
            twice.append(f"\n  {video.video_id!r}: {first.path} and {video.path}")
    if twice:
        raise ListingError(
            f"{len(twice)} video ids stand for more than one file; give each its own in a manifest "
            f"(--manifest, columns video_id and path):{''.join(twice[:5])}"
        )
    return list(seen.values())


def make_plan(
    videos: list[Video],
    snapshot: Snapshot | None,
    dataset: str,
    spec: FeatureSpec,
    *,
    retry_failed: bool = False,
    resume: bool = True,
    limit: int | None = None,
) -> Plan:
    """Return the work that `videos` are, minus what `snapshot` holds under `spec`; nothing is decoded.

    A stored video whose file has another size, or another modification time and content, is work again; one whose
    file is gone stays stored. So is one that was found damaged, or whose file changed since it failed, whether failed
    videos are retried or not. Without `resume` all are work. Raises ListingError where an id stands for a file that is
    stored, and still there, and now for another one too.
    """
    plan, replaced, clashes = Plan(), set(), []
    if snapshot:
        # Keys hold the tower's name as it was first ingested.
        spec = stored_spec(snapshot, spec) or spec
    for video in videos:
        key = video_key(spec, dataset, video.video_id)
        entry = read_entry(snapshot, key) if snapshot and resume else None
        failure = read_failure(snapshot, key) if snapshot and resume else None
        if entry is not None and not was_replaced(entry.source, video.path):
            plan.stored.append(video)
        elif failure is not None and not (retry_failed or _is_worth_again(failure, video.path)):
            plan.failed_before.append(failure)
        else:
            if entry is not None:
                replaced.add(video.video_id)
                if _is_another(entry, video.path):
                    clashes.append(f"\n  {video.video_id!r}: {entry.video_path} and {video.path}")
            plan.todo.append(video)
    if clashes:
        raise ListingError(
            f"{len(clashes)} video ids stand for other files that are stored already; give each file its own id in a "
            "manifest (--manifest, columns video_id and path), take another --dataset, or remove what is stored with "
            f"featstore rm --video:{''.join(clashes[:5])}"
        )
    todo = plan.todo if limit is None else plan.todo[:limit]
    return Plan(todo, plan.stored, plan.failed_before, frozenset(replaced))


def _is_worth_again(failure: Failure, path: str) -> bool:
    """Return whether a failed video is work though nobody asked to try again: its file may be sound now."""
    if failure.damaged:
        return True
    with contextlib.suppress(OSError, ValueError):
        # Also a file that was moved here with its old modification time, and where the clock was ahead when it failed.
        return os.stat(path).st_ctime > failure.created or failure.created > time.time()
    return False


def _is_another(entry: Entry, path: str) -> bool:
    """Return whether the file `entry` was made from is still there, beside the one at `path`."""
    before = entry.video_path
    with contextlib.suppress(OSError, ValueError):
        return (
            not os.path.samefile(before, path)
            and os.path.isfile(before)
            and not was_replaced(entry.source, before)
        )
    return False


def _is_folder(place: Path) -> bool:
    try:
        return stat.S_ISDIR(os.stat(place).st_mode)
    except (OSError, ValueError) as exc:
        raise _unlisted(place, exc) from exc


def _unlisted(place: str | Path, exc: Exception) -> ListingError:
    reason = getattr(exc, "strerror", None) or exc
    return ListingError(
        f"{place} cannot be listed: {reason}; --videos takes folders and video files that can be read"
    )


def _walk(folder: Path) -> Iterator[Video]:
    def refuse(exc: OSError) -> None:
        raise _unlisted(exc.filename, exc)

    # A name that ends like a video's is one, whatever it is: a folder or FIFO called x.mp4 shall be reported.
    for root, folders, files in os.walk(folder, onerror=refuse):
        named = [name for name in folders if Path(name).suffix.lower() in VIDEO_SUFFIXES]
        folders[:] = sorted(set(folders) - set(named))
        for name in sorted(files + named):
            path = Path(root, name)
            if path.suffix.lower() in VIDEO_SUFFIXES and not name.startswith("."):
                yield _named(path, path.relative_to(folder))


def _named(path: Path, below: Path) -> Video:
    return Video(name_video(below), os.fspath(path))


def _read_jsonl(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, object_pairs_hook=_each_once)
            except (ValueError, RecursionError) as exc:
                raise ListingError(f"{file}, line {number} is no JSON: {exc}") from exc
            if not isinstance(row, dict):
                raise ListingError(
                    f"{file}, line {number}: found {line.strip()[:80]}, expected an object"
                )
            yield number, row


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a name twice")
    return found


def _read_csv(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    with file.open(encoding="utf-8-sig", newline="") as lines:
        # Strict: else a quote that is not closed takes all rows to the next one, or to the end, for one value.
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        columns: list[str] = []
        try:
            for row in filter(None, rows):
                if not columns:
                    columns = _columns(file, row)
                elif len(row) > len(columns):
                    raise ListingError(
                        f"{file}, line {rows.line_num} has {len(row)} values for {len(columns)} columns; put a value "
                        f"that contains {delimiter!r} in quotes"
                    )
                else:
                    yield rows.line_num, dict(zip(columns, row, strict=False))
        except csv.Error as exc:
            raise ListingError(
                f"{file}, line {rows.line_num} cannot be read: {exc}; a value that begins with a quote must end with "
                "one, and a quote in it be doubled"
            ) from exc


def _columns(file: Path, names: list[str]) -> list[str]:
    for name in filter(None, names):  # spreadsheets write columns without a name
        if names.count(name) > 1:
            raise ListingError(f"{file} has the column {name!r:.100} twice; leave one of them out")
    return names
