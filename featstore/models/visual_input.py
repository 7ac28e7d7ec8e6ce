"""What a model is given of a video or an image: its features, and what a prompt says of where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    import torch

    from featstore.geometry import Geometry
    from featstore.pipeline.on_demand import EncodedVideo
    from featstore.records.header import Header


@dataclass(frozen=True)
class SampledClip:
    """Which frames of a video its features are of.

    Attributes:
        frames: the indices of the frames.
        total_frames: number of frames of the video.
        fps: frames per second of it.
        grid: (units, height, width) of the tokens, None if they are no grid.
    """

    frames: list[int]
    total_frames: int
    fps: float
    grid: tuple[int, int, int] | None

    @classmethod
    def of_header(cls, header: Header) -> SampledClip:
        """Return what a record's header says."""
        return cls(header.frames, header.total_frames, header.fps, header.layout.grid)

    @classmethod
    def of_encoded(cls, encoded: EncodedVideo, geometry: Geometry) -> SampledClip:
        """Return what is known of a video that was just encoded."""
        clip = encoded.clip
        layout = geometry.layout(len(clip.indices), encoded.grid)
        return cls(list(clip.indices), clip.total_frames, clip.fps, layout.grid)


@dataclass(frozen=True)
class VisualInput:
    """The features of a video or an image, to be put into a prompt.

    Attributes:
        rows: the number of tokens.
        load: brings the features to the device, (rows, D).
        identity: equal for equal features; None if unknown.
        clip: which frames they are of; None for images, and features that were given.
    """

    rows: int
    load: Callable[[], torch.Tensor]
    identity: Hashable = None
    clip: SampledClip | None = None
