"""A video file: its id, its fingerprint, and its frames as RGB, 8 bit, resized and cropped.

decord defines what the frames of a file are. PyAV reads most files in half the time and gives the same bytes; if that
is not certain, decord reads them. A decoder can hang for good while holding the interpreter lock, so callers that must
not hang run `decode` in a process they can kill.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import xxhash

from featstore import defaults
from featstore.decoding.av_packets import NotValidated
from featstore.decoding.frame_selection import Clip, FrameSelection
from featstore.errors import VideoError
from featstore.records.header import SourceFingerprint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from featstore.preprocessing import Preprocessing
    from featstore.sampling import Sampling

DECODER = (
    "decord-rgb24"  # the identity in a spec; decoders whose frames are the same bytes share it
)
DECODERS = ("auto", "av", "decord")
_HASH_BLOCK_BYTES = 4 << 20
# The start of files that make FFmpeg open others: an HLS playlist and a script for its concat demuxer.
_PLAYLISTS = (b"#EXTM3U", b"ffconcat")


@dataclass(frozen=True)
class Video:
    """One video: its id and the path of its file, which is made absolute."""

    video_id: str
    path: str

    def __post_init__(self) -> None:
        """Make the path absolute: it names the same file after a chdir, and in a store."""
        object.__setattr__(self, "path", os.path.abspath(self.path))


def decode(
    path: str,
    sampling: Sampling,
    pre: Preprocessing,
    out: NDArray[np.uint8],
    *,
    decoder: str = defaults.DECODER,
) -> Clip:
    """Decode the frames that `sampling` picks into `out`, prepared as `pre` says.

    Args:
        path: the file.
        sampling: which frames are taken.
        pre: how they are prepared.
        out: contiguous uint8, nframe * frame_bytes(pre) bytes or more; `len(clip.indices)` frames of `clip.size` are
            written one after the other, repeated if the clip is shorter than nframe.
        decoder: `auto` reads through PyAV what is certain to give decord's bytes, and AV1, which decord cannot read,
            and everything else through decord; `av` and `decord` use only that one.

    Returns:
        The clip, with the indices of the frames, their size and the decoder that read them.

    Raises:
        VideoError: if no frame can be decoded; it says why.
        MemoryError: if memory runs out.
    """
    check_is_file(path)
    selection = FrameSelection(path, sampling, pre, out)
    clip = _read(path, selection, decoder)
    return replace(clip, size=selection.size)


def _read(path: str, selection: FrameSelection, decoder: str) -> Clip:
    from featstore.decoding import av_decoder, decord_decoder

    if decoder == "decord":
        return decord_decoder.read(path, selection)
    reader = av_decoder.AvReader(path)
    try:
        return reader.read(selection)
    except NotValidated as exc:
        if reader.codec in av_decoder.PYAV_ONLY:
            raise VideoError(f"{path} cannot be decoded: {exc}", path) from exc
        if decoder == "av":
            raise VideoError(
                f"{path} is not read by PyAV: {exc}, so decord may give other frames; take --decoder auto",
                path,
            ) from exc
    return decord_decoder.read(path, selection)


def fingerprint(path: str) -> SourceFingerprint:
    """Return size, modification time and xxh3-128 of the file; VideoError if it cannot be read."""
    check_is_file(path)
    digest = xxhash.xxh3_128()
    try:
        with open(path, "rb", buffering=0) as file:
            while block := file.read(_HASH_BLOCK_BYTES):
                digest.update(block)
            found = os.fstat(file.fileno())
    except OSError as exc:
        raise VideoError(f"{path} cannot be read: {exc.strerror}", path) from exc
    return SourceFingerprint(found.st_size, found.st_mtime_ns, digest.hexdigest())


def was_replaced(source: SourceFingerprint, path: str) -> bool:
    """Return whether the file at `path` is another than the one `source` describes; False if there is none.

    It is read only if it has the same size and another modification time, and once a process while it does not change.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: a path that no file can have
        return False
    if not stat.S_ISREG(found.st_mode) or found.st_size != source.size:
        return True
    if found.st_mtime_ns == source.mtime_ns:
        return False
    try:
        return _content(path, (*_state(found), found.st_ctime_ns)) != source.xxh3_128
    except VideoError:
        return True


@lru_cache(maxsize=1 << 16)  # some 20 MB
def _content(path: str, state: tuple[int, ...]) -> str:
    """Return xxh3-128 of the file; it is read once for each `state`."""
    return fingerprint(path).xxh3_128


def check_is_file(path: str) -> os.stat_result:
    """Return the status of `path`; VideoError unless it is a regular file, not empty and not a playlist.

    A FIFO would block its opener; a playlist would have the decoder open other files, or wait for other machines.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise VideoError(f"{path} cannot be opened: {reason}", path) from exc
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "not a regular file"
        raise VideoError(f"{path} is {kind}; a video must be a file", path)
    if found.st_size == 0:
        raise VideoError(f"{path} is empty (0 bytes); copy it again", path)
    try:
        with open(path, "rb") as file:
            begin = file.read(16)
    except OSError as exc:
        raise VideoError(f"{path} cannot be opened: {exc.strerror}", path) from exc
    if begin.startswith(_PLAYLISTS):
        raise VideoError(f"{path} is a playlist; a video must hold its own frames", path)
    return found


def check_is_unchanged(path: str, before: os.stat_result) -> None:
    """Raise VideoError unless `path` is the file it was, as it was, when `check_is_file` returned `before`."""
    if _state(check_is_file(path)) != _state(before):
        raise VideoError(
            f"{path} changed while it was read; once it is whole, ask again or ingest it with --retry-failed",
            path,
        )


def _state(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
