"""Which videos there are: folders, files and manifests, and the ids that videos get."""

from __future__ import annotations

import csv
import json
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from featstore.decoding.video_file import Video
from featstore.errors import ListingError, plain_line
from featstore.store.paths import check_video_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import PurePath

_NAMES = (
    "264 265 3g2 3gp asf avi divx dv f4v flv gif h264 h265 hevc ivf m2ts m2v m4v mjpeg mjpg mkv mov mp4 mpe mpeg mpg "
    "mts mxf nut ogm ogv rm rmvb ts vob webm wmv y4m"
)
VIDEO_SUFFIXES = frozenset(f".{name}" for name in _NAMES.split())
MOST_TOLD = 100  # of what is odd about a listing, in one message
MAX_MANIFEST_BYTES = 256 << 20  # a million videos take some 100 MB


_OWN_ID = "rename the file, or give it an id in a manifest (--manifest, columns video_id and path)"
# Also as a `Path` has it, with one slash; a drive of Windows has one letter.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,3}")


class Listing(list[Video]):
    """Videos that `check_listing` has seen: each id names one file."""


def name_video(path: PurePath) -> str:
    """Return the id of the video at `path`: with slashes, and without its suffix if that is a video's.

    Anything else after a dot tells videos apart, as in `s1.e1` and `s1.e2`. Every id that is made of a path is made
    here.
    """
    named = path.with_suffix("") if path.suffix.lower() in VIDEO_SUFFIXES else path
    return named.as_posix()


def list_videos(places: Iterable[str | os.PathLike[str] | Video]) -> Listing:
    """Return the videos in folders and files; those of a folder are named by their path in it, without the suffix.

    Links to folders are followed, except back to a folder that they are in.

    Args:
        places: folders, video files, and `Video`s, which keep their ids. A `~` stands for the home folder.

    Raises:
        ListingError: if places are URLs, do not exist or hold no video, if a folder in one cannot be read, or as
            `check_listing` does. It tells of all that is odd, before any work.
    """
    videos: list[Video] = []
    odd: list[str] = []
    for place in places:
        try:
            videos += [place] if isinstance(place, Video) else _find_videos(place)
        except ListingError as exc:
            odd.append(str(exc))
    _refuse(odd, "places cannot be listed")
    return check_listing(videos)


def read_listing(file: str | os.PathLike[str]) -> Listing:
    """Return the videos of a manifest.

    Args:
        file: JSONL, CSV or TSV with the columns `video_id` and `path`, which is relative to the manifest's folder, or
            begins with `~`.

    Raises:
        ListingError: if lines cannot be read, which it names, or as `check_listing` does.
    """
    file = Path(file)
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".tsv": _read_csv}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise ListingError(f"{file} ends in {file.suffix!r}; a manifest is .jsonl, .csv or .tsv")
    videos: list[Video] = []
    odd: list[str] = []
    try:
        found = os.stat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_MANIFEST_BYTES:
            raise ListingError(
                f"{file} has {found.st_size} bytes, or is not a file; a manifest is one of at most {MAX_MANIFEST_BYTES}"
            )
        for line, row in reader(file):
            try:
                videos.append(_listed(file, line, row))
            except ListingError as exc:
                odd.append(str(exc))
        _refuse(odd, f"lines of {file} name no video")
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
    try:
        check_video_id(video_id)
    except ValueError as exc:
        raise ListingError(f"{file}, line {line}: {exc}; write another id") from exc
    return Video(video_id, _local_path(path, file.parent, f"{file}, line {line}: "))


def _local_path(text: str, folder: str | os.PathLike[str] = "", where: str = "") -> str:
    """Return where a file is that is named relative to `folder`; ListingError, which begins with `where`, for a URL."""
    url = _URL.match(text)
    path = os.path.join(folder, os.path.expanduser(text))
    if url is None or _exists(path):
        return path
    is_file = url[1].lower() == "file"
    remedy = (
        f"write its path, {unquote(text[url.end() - 1 :])}"
        if is_file
        else "download it, and name the file"
    )
    raise ListingError(f"{where}{text} is a URL; videos are read from files: {remedy}")


def _exists(path: str) -> bool:
    try:
        return os.path.exists(path)
    except ValueError:  # a NUL in the name
        return False


def check_listing(videos: Iterable[Video]) -> Listing:
    """Return `videos`, each once.

    Raises:
        ListingError: if ids name several files, or cannot be ids. It names them all, before any work: what has no id
            of its own cannot be recorded as a failure.
    """
    seen: dict[str, Video] = {}
    odd: list[str] = []
    for video in videos:
        try:
            check_video_id(video.video_id)
        except ValueError as exc:
            odd.append(f"{video.path}: {exc}")
            continue
        first = seen.setdefault(video.video_id, video)
        if first is not video and first.path != video.path:
            both = f"{first.path} and {video.path}"
            odd.append(f"the id {video.video_id!r} names more than one file, {both}")
    _refuse(odd, "videos have no id of their own", _OWN_ID)
    return Listing(seen.values())


def _refuse(odd: list[str], what: str, remedy: str = "") -> None:
    """Raise ListingError with all that is odd, if anything is, and how many there are of `what`."""
    then = f"; {remedy}" if remedy else ""
    if len(odd) == 1:
        raise ListingError(plain_line(odd[0]) + then)
    if odd:
        told = [plain_line(each) for each in odd[:MOST_TOLD]]
        more = [f"and {len(odd) - MOST_TOLD} more"] if len(odd) > MOST_TOLD else []
        raise ListingError("\n  ".join([f"{len(odd)} {what}{then}:", *told, *more]))


def _find_videos(given: str | os.PathLike[str]) -> list[Video]:
    if not os.fspath(given):
        raise ListingError("a place of videos is empty; name a folder or a video file")
    place = Path(_local_path(os.fspath(given)))
    found = list(_walk(place)) if _is_folder(place) else [_named(place, Path(place.name))]
    if not found:
        raise ListingError(
            f"{place} holds no video: no name in it ends in {' '.join(sorted(VIDEO_SUFFIXES))}"
        )
    return found


def _is_folder(place: Path) -> bool:
    try:
        return stat.S_ISDIR(os.stat(place).st_mode)
    except (OSError, ValueError) as exc:
        raise _unlisted(place, exc) from exc


def _unlisted(place: str | Path, exc: Exception) -> ListingError:
    reason = getattr(exc, "strerror", None) or exc
    remedy = "--videos takes folders and video files that can be read"
    if isinstance(exc, FileNotFoundError) and set(str(place)) & set("*?["):
        remedy = "as a pattern leave it unquoted, for the shell to put in the files that fit it"
    return ListingError(f"{place} cannot be listed: {reason}; {remedy}")


def _walk(folder: Path) -> Iterator[Video]:
    def refuse(exc: OSError) -> None:
        raise _unlisted(exc.filename, exc)

    # The folders that each one is in, itself included, as the system numbers them: links may lead back to them.
    around: dict[str, frozenset[tuple[int, int]]] = {}
    # A name with the suffix of a video is listed, whatever it is: a folder or FIFO called x.mp4 is reported.
    for root, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        named = [name for name in folders if Path(name).suffix.lower() in VIDEO_SUFFIXES]
        above = around.pop(root, frozenset()) | {_number(root)}
        folders[:] = sorted(
            name
            for name in set(folders) - set(named)
            if _number(os.path.join(root, name)) not in above
        )
        around |= {os.path.join(root, name): above for name in folders}
        for name in sorted(files + named):
            path = Path(root, name)
            if path.suffix.lower() in VIDEO_SUFFIXES and not name.startswith("."):
                yield _named(path, path.relative_to(folder))


def _number(folder: str) -> tuple[int, int]:
    try:
        found = os.stat(folder)
    except OSError as exc:
        raise _unlisted(folder, exc) from exc
    return found.st_dev, found.st_ino


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
                raise ListingError(f"{file}, line {number} is not JSON: {exc}") from exc
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
                f"{file}, line {rows.line_num} cannot be read: {exc}; a value that starts with a quote must end with "
                "one, and a quote in it be doubled"
            ) from exc


def _columns(file: Path, names: list[str]) -> list[str]:
    for name in filter(None, names):  # spreadsheets write columns without a name
        if names.count(name) > 1:
            raise ListingError(f"{file} has the column {name!r:.100} twice; leave one of them out")
    return names
