"""What a decoder is told, which frames of a clip are wanted and where each of them goes, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from featstore.errors import VideoError
from featstore.preprocessing import Preprocessing, prepare_frame

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from featstore.sampling import Sampling


# Doubts that no decoder settles: what was asked for is not in the file. A whole copy of it does.
DAMAGE, MISSING = "damage", "frames missing"
UNSETTLED = (DAMAGE, MISSING)
NO_FRAMES = "no frames"


@dataclass(frozen=True)
class Clip:
    """What a decoder reports of a video, and what was taken of it.

    Args:
        total_frames: number of frames of the video.
        fps: frames per second of it.
        indices: of the frames that were taken.
        decoder: what read them, `pyav` or `decord`.
        fallback: why `auto` left the file to decord, as a clause; empty if it did not.
        doubt: a short name of what makes decord give other frames than those asked for, or might, or one of
            `UNSETTLED`, of any decoder; empty if the frames are those asked for.
        size: (height, width) of the prepared frames.
    """

    total_frames: int
    fps: float
    indices: list[int]
    decoder: str = "decord"
    fallback: str = ""
    doubt: str = ""
    size: tuple[int, int] = (0, 0)


class NotValidated(Exception):
    """What is odd about a file: it was not verified that both decoders read such a file alike.

    Args:
        found: what is odd, as a clause.
        doubt: a short name for it if decord is known to give other frames than those asked for, or if nobody compared;
            empty if decord's frames are right, and only PyAV's were not compared with them.
    """

    def __init__(self, found: str, doubt: str = "") -> None:
        """Keep the name of the doubt beside the clause."""
        super().__init__(found)
        self.doubt = doubt


class NotRepeatable(NotValidated):
    """decord gives other frames of such a file from one run to the next."""


class FrameSelection:
    """The frames that a sampling takes of one video, prepared for the encoder one after the other into `out`.

    out: contiguous uint8, nframe * frame_bytes(pre) bytes or more.
    size: (height, width) of the prepared frames, (0, 0) before the first is there.
    """

    def __init__(
        self, path: str, sampling: Sampling, pre: Preprocessing, out: NDArray[np.uint8]
    ) -> None:
        """Select nothing yet: the clip's length is not known."""
        self.path = path
        self._sampling = sampling
        self._pre = pre
        self._out = out.reshape(-1)
        self.size = (0, 0)
        self._places: dict[int, list[int]] = {}
        self._count = 0

    def choose(self, total_frames: int, fps: float, decoder: str) -> Clip:
        """Return the clip with the indices to take; VideoError if there is none to take."""
        try:
            indices = self._sampling.indices(total_frames, fps)
        except ValueError as exc:
            raise VideoError(f"{self.path}: {exc}", self.path) from exc
        self._places, self.size, self._count = {}, (0, 0), len(indices)
        for place, index in enumerate(indices):
            self._places.setdefault(index, []).append(place)
        return Clip(total_frames, fps, indices, decoder)

    @property
    def wanted(self) -> list[int]:
        """Return the indices to decode, ascending, each once."""
        return sorted(self._places)

    def put(self, index: int, frame: NDArray[np.uint8]) -> None:
        """Keep a decoded frame (H, W, 3), in all places where its index is taken."""
        try:
            prepared = prepare_frame(frame, self._pre, self._count)  # (h, w, 3)
        except ValueError as exc:
            raise VideoError(f"{self.path}: {exc}", self.path) from exc
        height, width = size = prepared.shape[:2]
        if self.size not in ((0, 0), size):
            raise VideoError(
                f"{self.path} changes its size: frame {index} is prepared as {width} x {height} pixels, those before "
                f"as {self.size[1]} x {self.size[0]}, and features of both do not go together; convert it to one size",
                self.path,
            )
        self.size = size
        for place in self._places[index]:
            self._out[place * prepared.size : (place + 1) * prepared.size] = prepared.reshape(-1)
