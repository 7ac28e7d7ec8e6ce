"""Resizes a frame with the bytes of Pillow, or with those of torchvision, which calls torch.

Image processors differ in which of the two they call, and of noise 4 to 20 % of the values differ, by a level of 256 or
more. torch is loaded for the second only: it takes a decode worker 3 s and 130 MB, and resizes bytes of 1080p four
times as fast as Pillow, floats half as fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MODES = {2: "bilinear", 3: "bicubic"}  # by Pillow's numbers
# Name -> (torch's filter, whether floats are resized). A name is part of feature sets: other bytes get another.
_TORCHVISION = {
    f"torchvision-{of}-{mode}-1": (mode, of == "floats")
    for of in ("bytes", "floats")
    for mode in _MODES.values()
}


def torchvision_name(resample: int, of: Literal["bytes", "floats"]) -> str:
    """Return the name of a way in which torchvision resizes.

    Args:
        resample: Pillow's number of the filter, 2 or 3.
        of: `bytes` as torchvision's transforms.v2 resizes bytes, with integers; `floats` as its older transforms do,
            which round the result. Floats differ by a level between CPUs with AVX2 and without, in few values.
    """
    return f"torchvision-{of}-{_MODES[resample]}-1"


def resize(
    frame: NDArray[np.uint8], height: int, width: int, resample: int | str
) -> NDArray[np.uint8]:
    """Return `frame` (H, W, 3) uint8 as (height, width, 3) uint8.

    Args:
        frame: the frame.
        height: rows to have.
        width: columns to have.
        resample: Pillow's number of the filter, or a name from `torchvision_name`.

    Raises:
        ValueError: there is no such filter.
    """
    import numpy as np

    if not isinstance(resample, str):
        from PIL import Image

        size = (width, height)
        return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling(resample)))
    if resample not in _TORCHVISION:
        raise ValueError(f"this featstore does not resize by {resample!r:.80}; use a newer one")
    if frame.shape[:2] == (height, width):
        return frame
    import torch

    mode, floats = _TORCHVISION[resample]
    pixels = torch.from_numpy(np.require(frame, requirements="W")).permute(2, 0, 1)[None]
    pixels = torch.nn.functional.interpolate(
        pixels.float() if floats else pixels, size=(height, width), mode=mode, antialias=True
    )
    if floats:
        pixels = pixels.clamp_(0, 255).round_().to(torch.uint8)
    resized: NDArray[np.uint8] = pixels[0].permute(1, 2, 0).contiguous().numpy()
    return resized
