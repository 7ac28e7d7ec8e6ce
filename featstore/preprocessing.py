"""What happens to a decoded frame before an encoder sees it: one dataclass a family of image processors.

Resizing and cropping give bytes and run in the decode worker. Normalising is a look-up in a table of 256 values per
channel, which the encoder does on its own device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from featstore.resizing import resize

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_EDGE = 1 << 15  # pixels
_EDGES = ("shortest_edge", "crop_height", "crop_width", "height", "width")


@dataclass(frozen=True)
class _Normalization:
    """From bytes to the encoder's numbers: `(byte * rescale - mean) / std`, with a mean and a std per RGB channel."""

    resample: int | str = 3  # see resizing.py
    rescale: float = 1 / 255
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        """Check the edges, and make 1 and 1.0 one value, so that they have one digest."""
        for name, value in vars(self).items():
            least = int(name != "shortest_edge")
            if name in _EDGES and not least <= value <= MAX_EDGE:
                raise ValueError(f"{name} is {value}; it must be from {least} to {MAX_EDGE} pixels")
        object.__setattr__(self, "rescale", float(self.rescale))
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of a frame after resizing."""
        raise NotImplementedError

    def size_in_video(self, height: int, width: int, frames: int) -> tuple[int, int]:
        """Return what `size_of` does, in a video of which `frames` are taken; their number may count."""
        return self.size_of(height, width)


@dataclass(frozen=True, kw_only=True)
class ShortestEdgeCrop(_Normalization):
    """Resize the shorter side, keeping the shape, and crop the centre: CLIP's image processor, bit for bit.

    Args:
        shortest_edge: pixels of the shorter side, MAX_EDGE at most; 0 does not resize.
        crop_height: rows kept around the centre.
        crop_width: columns kept around the centre.
        resample: Pillow's number of the filter, 3 is bicubic; or a name of torchvision's, see featstore.resizing.
        rescale: factor from bytes to floats.
        mean: one value per channel, in RGB order.
        std: likewise.

    Raises:
        ValueError: an edge is not from 1 to MAX_EDGE.
    """

    shortest_edge: int
    crop_height: int
    crop_width: int
    kind: Literal["shortest_edge_crop"] = "shortest_edge_crop"

    @property
    def max_frame(self) -> tuple[int, int]:
        """Return (height, width) of every frame after it."""
        return self.crop_height, self.crop_width

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) after resizing, before cropping.

        As transformers' CLIPImageProcessorPil: the longer side becomes `int(shortest_edge * long / short)`.
        """
        if not self.shortest_edge:
            return height, width
        short, long = sorted((height, width))
        other = int(self.shortest_edge * long / short)
        return (other, self.shortest_edge) if width <= height else (self.shortest_edge, other)


@dataclass(frozen=True, kw_only=True)
class ExactResize(_Normalization):
    """Resize to one size, whatever the frame's shape: SigLIP's and ViT's image processors.

    Args:
        height: rows of the frame after it.
        width: columns.
        resample: as in ShortestEdgeCrop, and so are `rescale`, `mean` and `std`.

    Raises:
        ValueError: an edge is not from 1 to MAX_EDGE.
    """

    height: int
    width: int
    kind: Literal["exact_resize"] = "exact_resize"

    @property
    def max_frame(self) -> tuple[int, int]:
        """Return (height, width) of every frame after it."""
        return self.height, self.width

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) after resizing."""
        return self.height, self.width


@dataclass(frozen=True, kw_only=True)
class PixelBudget(_Normalization):
    """Resize to multiples of a patch within a number of pixels, nearly keeping the shape: Qwen-VL's image processor.

    Args:
        multiple: what height and width are multiples of, in pixels.
        min_pixels: pixels of a frame at least.
        max_pixels: pixels of a frame at most.
        resample: as in ShortestEdgeCrop, and so are `rescale`, `mean` and `std`.

    Raises:
        ValueError: no frame fits, or the largest has more than MAX_EDGE x MAX_EDGE pixels.
    """

    multiple: int
    min_pixels: int
    max_pixels: int
    kind: Literal["pixel_budget"] = "pixel_budget"

    def __post_init__(self) -> None:
        """Check the numbers, and make equal values one."""
        super().__post_init__()
        fits = self.multiple > 0 and self.multiple**2 <= self.max_pixels <= MAX_EDGE**2
        if not (fits and 1 <= self.min_pixels <= self.max_pixels):
            raise ValueError(
                f"a frame is to have {self.min_pixels} to {self.max_pixels} pixels in cells of {self.multiple} x "
                f"{self.multiple}; at least one cell must fit, the smallest frame has 1 pixel or more, and no more "
                f"than the largest, which has {MAX_EDGE} x {MAX_EDGE} at most"
            )

    @property
    def max_frame(self) -> tuple[int, int]:
        """Return a (height, width) that holds the pixels of any frame after it."""
        cells = self.max_pixels // self.multiple**2
        return self.multiple, cells * self.multiple

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) after resizing, as `smart_resize` of transformers' Qwen2-VL processor.

        Raises:
            ValueError: the frame is more than 200 times as long as it is wide, which that refuses too.
        """
        most = self.max_pixels
        return _fit_cells(height, width, self.multiple, self.min_pixels, most, most)


@dataclass(frozen=True, kw_only=True)
class VideoPixelBudget(PixelBudget):
    """Resize as PixelBudget, with fewer pixels a frame the more frames a video has: qwen-vl-utils' `fetch_video`.

    Args:
        multiple: as in PixelBudget, and so is what follows it there.
        total_pixels: pixels of all frames of a video at most, counted once for `frames_per_unit` frames; `min_pixels`
            of a frame, and 5 % more, are never undercut.
        frames_per_unit: number of frames that make a unit.
    """

    total_pixels: int
    frames_per_unit: int = 2
    kind: Literal["video_pixel_budget"] = "video_pixel_budget"  # type: ignore[assignment]

    def size_in_video(self, height: int, width: int, frames: int) -> tuple[int, int]:
        """Return (height, width) of a frame after resizing, in a video of which `frames` are taken.

        Raises:
            ValueError: as `size_of`.
        """
        share = self.total_pixels / frames * self.frames_per_unit
        most = min(self.max_pixels, max(share, int(self.min_pixels * 1.05)))
        # Growing to the least may end above `most`, as it does there.
        return _fit_cells(height, width, self.multiple, self.min_pixels, most, self.max_pixels)


def _fit_cells(
    height: int, width: int, unit: int, least: int, most: float, limit: int
) -> tuple[int, int]:
    """Return the multiples of `unit` near (height, width) that have `least` to `most` pixels, or up to `limit`."""
    if max(height, width) > 200 * min(height, width):
        raise ValueError(
            f"a frame of {width} x {height} pixels is more than 200 times as long as wide"
        )
    tall, wide = (max(unit, round(side / unit) * unit) for side in (height, width))
    if tall * wide > most:
        shrink = math.sqrt(height * width / most)
        tall, wide = (
            max(unit, math.floor(side / shrink / unit) * unit) for side in (height, width)
        )
    elif tall * wide < least:
        grow = math.sqrt(least / (height * width))
        tall, wide = (math.ceil(side * grow / unit) * unit for side in (height, width))
    if tall * wide > limit:
        raise ValueError(
            f"a frame of {width} x {height} pixels is too long for {limit} pixels in cells of {unit}"
        )
    return tall, wide


@dataclass(frozen=True)
class UnknownPreprocessing:
    """What happened to the frames of features that were imported: nothing can be prepared so."""

    kind: Literal["unknown"] = "unknown"

    @property
    def max_frame(self) -> tuple[int, int]:
        """Raise ValueError."""
        raise ValueError(
            "the preprocessing of imported features is unknown; no frame can be prepared so"
        )


Preprocessing: TypeAlias = (
    ShortestEdgeCrop | ExactResize | VideoPixelBudget | PixelBudget | UnknownPreprocessing
)


def frame_bytes(pre: Preprocessing) -> int:
    """Return the most bytes that a frame takes after `pre`."""
    height, width = pre.max_frame
    return height * width * 3


def prepare_frame(
    frame: NDArray[np.uint8], pre: Preprocessing, frames: int = 1
) -> NDArray[np.uint8]:
    """Return `frame` (H, W, 3) uint8 resized, and centre-cropped if `pre` says so, uint8; `frames` its video has.

    The crop's origin is `(size - crop) // 2`, as in transformers' CLIPImageProcessorPil.

    Raises:
        ValueError: the frame is too small to be cropped, or too long.
    """
    if isinstance(pre, UnknownPreprocessing):
        raise ValueError("no frame can be prepared in a way that is unknown")
    height, width = pre.size_in_video(frame.shape[0], frame.shape[1], frames)
    if not isinstance(pre, ShortestEdgeCrop) or pre.shortest_edge:
        frame = resize(frame, height, width, pre.resample)
    if not isinstance(pre, ShortestEdgeCrop):
        return frame
    top, left = (height - pre.crop_height) // 2, (width - pre.crop_width) // 2
    if top < 0 or left < 0:
        raise ValueError(
            f"a frame of {width} x {height} pixels cannot be cropped to {pre.crop_width} x {pre.crop_height}"
        )
    return frame[top : top + pre.crop_height, left : left + pre.crop_width]


def needs_torch(pre: Preprocessing) -> bool:
    """Return whether preparing frames loads torch."""
    return isinstance(getattr(pre, "resample", None), str)


def normalization_table(pre: Preprocessing) -> NDArray[np.float32]:
    """Return (256, 3) float32: the pixel value of each byte in each channel.

    `(float32(byte * rescale) - mean) / std`: the product in float64, the rest in float32, as the processor does it.
    """
    import numpy as np

    if isinstance(pre, UnknownPreprocessing):
        raise ValueError("no frame can be normalised in a way that is unknown")
    scaled = (np.arange(256, dtype=np.float64) * pre.rescale).astype(np.float32)
    mean, std = (np.asarray(values, dtype=np.float32) for values in (pre.mean, pre.std))
    table: NDArray[np.float32] = (scaled[:, None] - mean) / std
    return table
