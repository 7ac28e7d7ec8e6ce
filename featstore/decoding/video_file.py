"""A video file: its id, its fingerprint, and its frames as RGB, 8 bit, resized and cropped.

There are two answers to what the frames of a file are. decord's is that of the original models; PyAV reads most files
in half the time and gives the same bytes, and if that is not certain, decord reads them. For some kinds of files decord
gives other frames than those asked for; the decoder `exact` takes those that a player shows.

A decoder can hang for good while holding the interpreter lock, so callers that must not hang run `decode` in a process
they can kill.
"""

from __future__ import annotations

import os
import stat
import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import xxhash

from featstore import defaults
from featstore.decoding.frame_selection import (
    DAMAGE,
    NO_FRAMES,
    UNSETTLED,
    Clip,
    FrameSelection,
    NotRepeatable,
    NotValidated,
)
from featstore.errors import VideoError
from featstore.records.header import SourceFingerprint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from featstore.preprocessing import Preprocessing
    from featstore.sampling import Sampling

# What stands for a decoder in a spec; decoders whose frames are the same bytes share it.
DECODER = "decord-rgb24"
_IDENTITIES = {
    "auto": DECODER,
    "av": DECODER,
    "decord": DECODER,
    "exact": "pyav-presentation",
}
DECODERS = tuple(_IDENTITIES)
_TRY_EXACT = "use --decoder exact, which takes the frames that a player shows"
_TAKE_AUTO = "take --decoder auto"
_COPY_AGAIN = "copy it again, or leave it out"
_HASH_BLOCK_BYTES = 4 << 20
# The start of files that make FFmpeg open others: an HLS playlist and a script for its concat demuxer.
_PLAYLISTS = (b"#EXTM3U", b"ffconcat")


@dataclass(frozen=True, slots=True)
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
            and everything else through decord; `av` and `decord` use only that one. `exact` takes the frames that a
            player shows, through PyAV.

    Returns:
        The clip: the indices of the frames, their size, the decoder that read them, and any doubt that they are those
        asked for.

    Raises:
        VideoError: if no frame can be decoded, or decord gives others each time; it says why.
        MemoryError: if memory runs out.
    """
    check_is_file(path)
    selection = FrameSelection(path, sampling, pre, out)
    clip = _read(path, selection, decoder)
    return replace(clip, size=selection.size)


def _read(path: str, selection: FrameSelection, decoder: str) -> Clip:
    from featstore.decoding.exact_decoder import ExactReader

    if decoder == "exact":
        return ExactReader(path).read(selection)
    return _decode_like_decord(path, selection, decoder)


def _decode_like_decord(path: str, selection: FrameSelection, decoder: str) -> Clip:
    from featstore.decoding import av_decoder, decord_decoder

    reader = av_decoder.AvReader(path)
    why = NotValidated("")
    try:
        if decoder != "decord":
            return reader.read(selection)
        reader.examine()
    except NotValidated as exc:
        why = exc
    if reader.codec in av_decoder.PYAV_ONLY:
        found = str(why) or f"decord cannot read {reader.codec.upper()}"
        remedy = _remedy(why) if str(why) else _TAKE_AUTO
        raise VideoError(f"{path} cannot be decoded: {found}; {remedy}", path) from why
    if decoder == "av":
        remedy = _TAKE_AUTO if _decord_reads(why) else _remedy(why)
        raise VideoError(f"{path} is not read by PyAV: {why}; {remedy}", path) from why
    if decoder == "auto" and isinstance(why, NotRepeatable):
        raise VideoError(
            f"{path}: {why}, and decord gives other frames of such a file from one run to the next; {_TRY_EXACT}",
            path,
        ) from why
    try:
        clip = decord_decoder.read(path, selection)
    except decord_decoder.CannotRead as exc:
        if exc.damaged and not why.doubt:
            why = NotValidated(str(exc), DAMAGE)
        raise VideoError(f"{exc}; {_remedy(why)}", path) from exc
    return replace(clip, fallback=str(why) if decoder == "auto" else "", doubt=why.doubt)


def _decord_reads(why: NotValidated) -> bool:
    """Return whether decord reads a file that PyAV leaves to it; other containers it may not, or not alike twice."""
    lost = why.doubt in (*UNSETTLED, NO_FRAMES)
    return not (lost or isinstance(why, NotRepeatable) or why.doubt.endswith(" container"))


def _remedy(why: NotValidated) -> str:
    """Return what to do with a file that decord does not read: no decoder finds what is lost."""
    return _COPY_AGAIN if why.doubt in (*UNSETTLED, NO_FRAMES) else _TRY_EXACT


def identity_of(decoder: str) -> str:
    """Return what stands in a spec for one of `DECODERS`."""
    return _IDENTITIES[decoder]


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


class Fingerprinted(Protocol):
    """What says which file it is of, as a SourceFingerprint does: a video's row, too."""

    @property
    def size(self) -> int:
        """Return the file's bytes."""
        ...

    @property
    def mtime_ns(self) -> int:
        """Return its modification time."""
        ...

    @property
    def xxh3_128(self) -> str:
        """Return the checksum of its content."""
        ...


def was_replaced(source: Fingerprinted, path: str, made_from: str = "") -> bool:
    """Return whether the file at `path` is another than the one `source` describes; False if there is none.

    It is read only if it has the same size, and another modification time or another place than `made_from`, the path
    of the one described: archives give many files one time. It is read once a process while it does not change. A file
    that cannot be read is not said to be another; a warning tells.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: a path that no file can have
        return False
    if not stat.S_ISREG(found.st_mode) or found.st_size != source.size:
        return True
    if found.st_mtime_ns == source.mtime_ns and (
        made_from in ("", path) or os.path.realpath(made_from) == os.path.realpath(path)
    ):
        return False
    try:
        return _content(path, (*_state(found), found.st_ctime_ns)) != source.xxh3_128
    except VideoError as exc:
        if not isinstance(exc.__cause__, OSError):
            return True
        warnings.warn(
            f"{exc}; so whether it is the file that its features were made from is not known, and they are kept; make "
            "it readable",
            RuntimeWarning,
            stacklevel=2,
        )
        return False


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
