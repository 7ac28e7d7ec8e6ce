"""The frames that a video's features were made from, decoded again from its file."""

from __future__ import annotations

import math
import tempfile
from contextlib import ExitStack
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

import numpy as np

from featstore import defaults
from featstore.decoding.pool import Decoded, DecoderPool
from featstore.decoding.video_file import DECODERS, Video, check_is_file, identity_of, was_replaced
from featstore.errors import VideoError
from featstore.preprocessing import frame_bytes
from featstore.system.filesystems import format_bytes
from featstore.system.processes import Slots, enough_descriptors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from featstore.records.header import Header
    from featstore.spec import FeatureSpec

_POLL_SECONDS = 0.2
_MAX_BYTES = 4 << 30


@enough_descriptors()
def decode_again(
    header: Header,
    spec: FeatureSpec,
    path: str,
    places: Sequence[int],
    *,
    timeout: float = defaults.DECODE_TIMEOUT,
) -> NDArray[np.uint8]:
    """Return frames that the encoder saw, resized and cropped, uint8 (len(places), height, width, 3).

    They are decoded in a process that can be killed.

    Args:
        header: what the record says.
        spec: its feature set.
        path: where the file is now.
        places: of the frames among those sampled.
        timeout: seconds that decoding may take.

    Raises:
        VideoError: the file is not there, is another than the one that was encoded, or cannot be decoded.
    """
    if spec.imported:
        raise VideoError("which frames they are of is not known, the features were imported", path)
    decoder = next((name for name in DECODERS if identity_of(name) == spec.decoder), None)
    if decoder is None:
        raise VideoError(f"its decoder is {spec.decoder!r}, which is none of featstore's", path)
    check_is_file(path)
    if was_replaced(header.source, path, header.video_path):
        raise _another(path)
    size = len(header.frames) * frame_bytes(spec.preprocessing)
    if size > _MAX_BYTES:
        raise VideoError(
            f"its frames take {format_bytes(size)}, more than is decoded for a picture", path
        )
    with ExitStack() as stack:
        slots = Slots.create(1, spec.sampling.nframe * frame_bytes(spec.preprocessing))
        stack.callback(slots.close)
        pool = DecoderPool(
            slots,
            spec.sampling,
            spec.preprocessing,
            workers=1,
            timeout=timeout,
            log=stack.enter_context(tempfile.TemporaryFile(buffering=0)),
            decoder=decoder,
        )
        stack.callback(pool.kill)
        done = _decode(pool, Video(header.video_id, path))
        if done.error or done.clip is None or done.source is None:
            raise VideoError(done.error, path)
        if done.source.xxh3_128 != header.source.xxh3_128 or done.clip.indices != header.frames:
            raise _another(path)
        shape = len(header.frames), *done.clip.size, 3
        frames = np.frombuffer(slots.slot(0), np.uint8)[: math.prod(shape)].reshape(shape)
        return frames[list(places)]


def _decode(pool: DecoderPool, video: Video) -> Decoded:
    pool.add([video])
    while True:
        wait(pool.connections, _POLL_SECONDS)
        for done in pool.collect():
            return done


def _another(path: str) -> VideoError:
    return VideoError(f"{path} is another file than the one that the features were made from", path)
