"""Frames through decord, the decoder that defines what a frame's bytes are."""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from featstore.errors import VideoError

if TYPE_CHECKING:
    from featstore.decoding.frame_selection import Clip, FrameSelection

# Decoded at once: a few frames of usual size, or one that is larger.
BATCH_BYTES = 32 << 20


class CannotRead(VideoError):
    """decord cannot read the file; another decoder might, unless it is damaged."""

    def __init__(self, path: str, what: str, reason: str) -> None:
        """Say that `path` cannot be `what`, and why."""
        super().__init__(f"{path} cannot be {what}: {reason}", path)
        self.damaged = "damaged" in reason


def read(path: str, selection: FrameSelection) -> Clip:
    """Give the wanted frames of the file to `selection`.

    Raises:
        CannotRead: if decord finds none; it says why.
        VideoError: if the sampling finds no frame to take, or they do not go together.
    """
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    with ExitStack() as stack:
        try:
            # One thread a video: workers are as many as there are cores.
            name = _openable(path, stack)
            reader = decord.VideoReader(name, ctx=decord.cpu(0), num_threads=1)
            total, fps = len(reader), float(reader.get_avg_fps())
        except (decord.DECORDError, RuntimeError, OSError, AssertionError, MemoryError) as exc:
            raise CannotRead(path, "opened as a video", _reason(exc)) from exc
        clip = selection.choose(total, fps, "decord")
        try:
            _decode(reader, selection)
        except (decord.DECORDError, RuntimeError, ValueError, MemoryError) as exc:
            raise CannotRead(path, "decoded", _reason(exc)) from exc
    return clip


def _decode(reader: Any, selection: FrameSelection) -> None:
    wanted = selection.wanted
    height, width, colors = reader[wanted[0]].shape
    if colors != 3:  # it takes the padding of narrow lines for colors
        raise ValueError(f"decord cannot read frames that are {width} pixels wide")
    step = max(1, BATCH_BYTES // (height * width * 3))
    for start in range(0, len(wanted), step):
        batch = wanted[start : start + step]
        frames = reader.get_batch(batch).asnumpy()  # (B, H, W, 3)
        for index, frame in zip(batch, frames, strict=True):
            selection.put(index, frame)


def _openable(path: str, stack: ExitStack) -> str:
    # decord takes only UTF-8 names; a name in another encoding is reached through a descriptor.
    try:
        path.encode()
    except UnicodeEncodeError:
        file = stack.enter_context(open(path, "rb"))  # noqa: SIM115 (the stack closes it)
        return f"/dev/fd/{file.fileno()}"
    return path


# Words in a message of decord's -> what they mean.
_MEANINGS = {
    "cannot find video stream": "it has no video stream",
    "Error reading": "it is not a video, or is cut short",
    "getting stream info": "it is damaged or cut short",
    "avcodec_open2": "its codec cannot be set up",
    "av_read_frame failed": "it is damaged or cut short",
    "Cannot create buffer source": "it states no size or no pixel format",
    "Error sending packet": "a frame is damaged",
    "Error decoding frame": "a frame is damaged",
    "run_.load()": "a frame is damaged",  # its thread has ended by one, and it is asked for the next
    "Error fetch filtered frame": "a frame cannot be converted",
    "Unable to handle EOF": "decord does not reach its last frames",
    "Error seeking keyframe": "it has no key frame to begin with",
    "Failed to seek": "a frame cannot be reached",
    "Failed to measure duration": "it states no length",
    "Invalid frame count": "it has no frames",
    "The size must exactly match": "it is too narrow, or changes its size",
}
# FFmpeg's -ENOMEM in a check that failed, the words of C++ and of C for it, and a thread that finds no place.
_OUT_OF_MEMORY = (
    "(-12 vs. 0)",
    "bad_alloc",
    "Cannot allocate memory",
    "Resource temporarily unavailable",
)


def _reason(exc: BaseException) -> str:
    """Return what a decord error says, without the C++ source line, the failed check and the stack it carries.

    Raises MemoryError if it says that memory ran out.
    """
    text = " ".join(line.strip() for line in str(exc).splitlines()[:3])
    if isinstance(exc, MemoryError) or any(words in text for words in _OUT_OF_MEMORY):
        raise MemoryError from exc
    for words, meaning in _MEANINGS.items():
        if words in text:
            return meaning
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    text = lines[0] if lines else type(exc).__name__
    text = re.sub(r"(\[[0-9:]+\] )?/\S+\.(cc|h):[0-9]+: ", "", text)  # once for each call between
    return re.sub(r"Check failed: .*?\) ", "", text)
