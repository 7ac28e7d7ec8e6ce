"""A video file opened through PyAV, and its video stream ready to decode."""

from __future__ import annotations

import errno

import av

from featstore.decoding.frame_units import Units
from featstore.errors import VideoError

# Formats that make FFmpeg open other files than the one that was named.
_PLAYLISTS = {
    "hls",
    "dash",
    "concat",
    "concatf",
    "image2",
    "imf",
    "sdp",
    "rtsp",
    "rtp",
    "lavfi",
    "tty",
}
# The names of containers that are told apart.
MOV, MATROSKA = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"
_FORMATS = ",".join(sorted(av.formats_available - _PLAYLISTS))


def open_file(path: str, **options: str) -> av.container.InputContainer:
    """Open the file, with FFmpeg's `options`; what is in it is never taken for the address of another.

    Raises:
        VideoError: if its format is one that names other files.
        av.FFmpegError: if it cannot be read.
    """
    try:
        return av.open(f"file:{path}", options={"format_whitelist": _FORMATS, **options})
    except av.error.ArgumentError as exc:  # that is not in the list
        raise VideoError(
            f"{path} is a playlist, or no video; a video must hold its own frames", path
        ) from exc


def video_stream(
    path: str, container: av.container.InputContainer, *, conceal: bool
) -> av.VideoStream:
    """Return the main video stream, ready to decode on one thread.

    Args:
        path: of the file, for messages.
        container: the open file.
        conceal: whether a damaged frame is patched up, as players do, or ends the decoding.

    Raises:
        VideoError: if there is none, or FFmpeg has no decoder for it.
    """
    found = list(container.streams.video)
    pictures = [s for s in found if s.disposition & av.stream.Disposition.attached_pic]
    if not found:
        raise VideoError(f"{path} cannot be decoded: it has no video stream", path)
    if len(pictures) == len(found):
        raise VideoError(
            f"{path} cannot be decoded: it has no video stream, only a cover picture; leave it out",
            path,
        )
    stream = container.streams.best("video")
    if not isinstance(stream, av.VideoStream) or stream.codec_context is None:
        raise VideoError(f"{path} cannot be decoded: its codec is unknown", path)
    for other in container.streams:
        if other is not stream and hasattr(other, "discard"):  # since PyAV 18
            other.discard = av.stream.Discard.all
    stream.codec_context.thread_count = 1
    if not conceal:
        stream.codec_context.options = {"err_detect": "explode"}
    return stream


def reason(exc: BaseException) -> str:
    """Return what an error of PyAV's says of the file, as a clause.

    Raises MemoryError if it says that memory ran out.
    """
    # EAGAIN: a thread finds no place.
    out_of_memory = getattr(exc, "errno", 0) in (errno.ENOMEM, errno.EAGAIN)
    if isinstance(exc, MemoryError) or out_of_memory:
        raise MemoryError from exc
    if isinstance(exc, av.error.InvalidDataError):
        return "it is not a video, or is damaged or cut short"
    if isinstance(exc, UnicodeDecodeError):
        return "its metadata are not UTF-8"
    text = getattr(exc, "strerror", None) or str(exc)
    return text[:1].lower() + text[1:]


def units_of(stream: av.VideoStream) -> Units:
    """Return how the packets of the stream are read."""
    context = stream.codec_context
    return Units.of(
        context.codec.canonical_name, context.extradata or b"", intra_only=context.codec.intra_only
    )
