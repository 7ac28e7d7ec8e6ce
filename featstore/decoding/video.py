"""A video file and its frames, as decord gives them: RGB, 8 bit, resized and cropped a few at a time.

decord can hang for good while holding the interpreter lock, so callers that must not hang run this in a process they
can kill.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash

from featstore.errors import VideoError
from featstore.preprocess import Preprocessing, resize_and_crop
from featstore.record import SourceFingerprint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from featstore.sampling import Sampling

DECODER = "decord-rgb24"  # the identity that enters a spec; decoders proved byte-identical share it
# Decoded at once: a few frames of usual size, one where a frame alone is larger.
BATCH_BYTES = 32 << 20
_HASH_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class Video:
    """One video: its id and the path of its file."""

    video_id: str
    path: str


@dataclass(frozen=True)
class Clip:
    """What a decoder tells of a video, and which of its frames were taken."""

    total_frames: int
    fps: float
    indices: list[int]


def decode(path: str, sampling: Sampling, pre: Preprocessing, out: NDArray[np.uint8]) -> Clip:
    """Decode the frames that `sampling` picks into `out`, resized and cropped.

    out: (at least nframe, crop_height, crop_width, 3) uint8; the first `len(clip.indices)` frames are written, repeated
    where the clip is shorter than nframe. Raises VideoError, which says why, where there is no frame to be had.
    """
    import decord

    check_is_file(path)
    decord.logging.set_level(decord.logging.QUIET)
    with ExitStack() as stack:
        try:
            # One thread a video: workers are as many as there are cores.
            name = _openable(path, stack)
            reader = decord.VideoReader(name, ctx=decord.cpu(0), num_threads=1)
            total, fps = len(reader), float(reader.get_avg_fps())
        except (decord.DECORDError, RuntimeError, OSError) as exc:
            raise VideoError(f"{path} cannot be opened as a video: {_reason(exc)}", path) from exc
        try:
            indices = sampling.indices(total, fps)
        except ValueError as exc:
            raise VideoError(f"{path}: {exc}", path) from exc
        try:
            _decode_into(out, reader, indices, pre)
        except (decord.DECORDError, RuntimeError, ValueError) as exc:
            raise VideoError(f"{path} cannot be decoded: {_reason(exc)}", path) from exc
    return Clip(total, fps, indices)


def fingerprint(path: str) -> SourceFingerprint:
    """Return size, modification time and xxh3-128 of the file; VideoError where it cannot be read."""
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


def check_is_file(path: str) -> None:
    """Raise VideoError unless `path` is a regular file with something in it: a FIFO would block its opener."""
    try:
        found = os.stat(path)
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise VideoError(f"{path} cannot be opened: {reason}", path) from exc
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
        raise VideoError(f"{path} is {kind}; a video must be a file", path)
    if found.st_size == 0:
        raise VideoError(f"{path} is empty (0 bytes); copy it again", path)


def _decode_into(
    out: NDArray[np.uint8], reader: object, indices: list[int], pre: Preprocessing
) -> None:
    wanted = sorted(set(indices))
    height, width = reader[wanted[0]].shape[:2]  # type: ignore[index]
    step = max(1, BATCH_BYTES // (height * width * 3))
    places: dict[int, list[int]] = {}
    for place, index in enumerate(indices):
        places.setdefault(index, []).append(place)
    for start in range(0, len(wanted), step):
        batch = wanted[start : start + step]
        frames = reader.get_batch(batch).asnumpy()  # type: ignore[attr-defined]  # (B, H, W, 3)
        for index, frame in zip(batch, frames, strict=True):
            first, *repeats = places[index]
            out[first] = resize_and_crop(frame, pre)
            for place in repeats:
                out[place] = out[first]


def _openable(path: str, stack: ExitStack) -> str:
    # decord takes UTF-8 names alone; a name in another encoding is reached through a descriptor.
    try:
        path.encode()
    except UnicodeEncodeError:
        file = stack.enter_context(open(path, "rb"))  # noqa: SIM115 (the stack closes it)
        return f"/dev/fd/{file.fileno()}"
    return path


def _reason(exc: BaseException) -> str:
    """Return what a decord error says, without the C++ source line, the failed check and the stack it carries."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    text = lines[0] if lines else type(exc).__name__
    if "cannot find video stream" in text:
        return "it has no video stream"
    if text.startswith("Error reading"):
        return "it is no video, or one cut short"
    text = re.sub(r"^(\[[0-9:]+\] )?/\S+\.(cc|h):[0-9]+: ", "", text)
    return re.sub(r"^Check failed: .*?\) ", "", text)
