"""What happens to a decoded frame before an encoder sees it, bit for bit as CLIP's PIL image processor does it.

Resizing and cropping work on bytes and run in the decode worker. Normalising is a look-up in a table of 256 values per
channel, which the encoder does on its own device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Preprocessing:
    """The parameters of a CLIP image processor.

    Args:
        shortest_edge: pixels the shorter side is resized to; 0 does not resize.
        crop_height: rows kept around the centre.
        crop_width: columns kept around the centre.
        resample: Pillow's number of the filter; 3 is bicubic.
        rescale: factor from bytes to floats.
        mean: one value per channel, in RGB order.
        std: likewise.
    """

    shortest_edge: int
    crop_height: int
    crop_width: int
    resample: int = 3
    rescale: float = 1 / 255
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        """Make 1 and 1.0 one value, so that they have one digest."""
        object.__setattr__(self, "rescale", float(self.rescale))
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Return `(height, width, 3)` of a frame after resizing and cropping."""
        return self.crop_height, self.crop_width, 3


def resize_and_crop(frame: NDArray[np.uint8], pre: Preprocessing) -> NDArray[np.uint8]:
    """Return `frame` (H, W, 3) uint8 resized and centre-cropped to `pre.frame_shape`, uint8.

    The same bytes as transformers' CLIPImageProcessorPil: Pillow resizes the shorter side, the longer one becomes
    `int(shortest_edge * long / short)`; the crop's origin is `(size - crop) // 2`.
    """
    import numpy as np
    from PIL import Image

    height, width = frame.shape[:2]
    if pre.shortest_edge:
        short, long = sorted((height, width))
        other = int(pre.shortest_edge * long / short)
        size = (pre.shortest_edge, other) if width <= height else (other, pre.shortest_edge)
        image = Image.fromarray(frame).resize(size, resample=Image.Resampling(pre.resample))
        frame = np.asarray(image)
        height, width = frame.shape[:2]
    top, left = (height - pre.crop_height) // 2, (width - pre.crop_width) // 2
    if top < 0 or left < 0:
        raise ValueError(
            f"a frame of {width} x {height} pixels cannot be cropped to {pre.crop_width} x {pre.crop_height}"
        )
    return frame[top : top + pre.crop_height, left : left + pre.crop_width]


def normalization_table(pre: Preprocessing) -> NDArray[np.float32]:
    """Return (256, 3) float32: the pixel value of each byte in each channel.

    `(float32(byte * rescale) - mean) / std`: the product in float64, the rest in float32, as the processor does it.
    """
    import numpy as np

    scaled = (np.arange(256, dtype=np.float64) * pre.rescale).astype(np.float32)
    mean, std = (np.asarray(values, dtype=np.float32) for values in (pre.mean, pre.std))
    table: NDArray[np.float32] = (scaled[:, None] - mean) / std
    return table
