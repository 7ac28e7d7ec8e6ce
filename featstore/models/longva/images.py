"""An image on its way into the prompt, as LongVA's `anyres` cuts it up and its `unires` puts it together.

The image is fitted into the best of the config's resolutions, padded with black and cut into tiles the size of a frame;
the tokens of each, pooled by averages of 2 x 2, follow row by row. The original also encodes the whole image in one
tile, and then drops it. A question with an image is refused if the config has other settings.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from featstore.errors import CheckpointError, FeatstoreError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featstore.checkpoints.config_fields import ConfigFields
    from featstore.preprocessing import ShortestEdgeCrop

MAX_SIDE = 1 << 14
_RANGE = re.compile(r"\((\d{1,2})x(\d{1,2})\),\s*\.\.\.\s*,\s*\((\d{1,2})x(\d{1,2})\)")


@dataclass(frozen=True)
class Tiling:
    """How images become tiles.

    Attributes:
        side: height and width of a tile in pixels.
        resolutions: (width, height) in pixels, multiples of `side`.
    """

    side: int
    resolutions: tuple[tuple[int, int], ...]

    def cut(self, image: str | os.PathLike[str] | Image.Image) -> NDArray[np.uint8]:
        """Return the tiles (N, side, side, 3) uint8 of an image, row by row.

        Args:
            image: a picture, or the path of its file.

        Raises:
            FeatstoreError: the file cannot be read.
        """
        picture = _open(image)
        width, height = self._best(picture.size)
        canvas = _fit(picture, width, height)
        columns, rows = width // self.side, height // self.side
        pixels = np.asarray(canvas).reshape(rows, self.side, columns, self.side, 3)
        return np.ascontiguousarray(
            pixels.transpose(0, 2, 1, 3, 4).reshape(-1, self.side, self.side, 3)
        )

    def _best(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the first of the resolutions that keep most of the image's pixels and, of these, waste least."""

        def merit(resolution: tuple[int, int]) -> tuple[int, int]:
            scale = min(resolution[0] / size[0], resolution[1] / size[1])
            kept = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
            return kept, kept - resolution[0] * resolution[1]

        return max(self.resolutions, key=merit)


def read_tiling(config: ConfigFields, preprocessing: ShortestEdgeCrop) -> Tiling:
    """Return how images are cut for a checkpoint.

    Args:
        config: the checkpoint's config.json.
        preprocessing: its preprocessing of frames.

    Raises:
        CheckpointError: the config asks for another way than the one featstore knows.
    """
    side = preprocessing.crop_height
    expected = {
        "image_aspect_ratio": (config.get("image_aspect_ratio"), "anyres"),
        "mm_patch_merge_type": (config.get("mm_patch_merge_type"), "unires"),
        "the preprocessor's size": (preprocessing.shortest_edge, side),
    }
    for name, (found, known) in expected.items():
        if found != known:
            raise CheckpointError(
                f"{config.origin} has {name} = {found!r}, images are only taken with {known!r}; ask without the image"
            )
    return Tiling(side, _resolutions(config, side))


def _resolutions(config: ConfigFields, side: int) -> tuple[tuple[int, int], ...]:
    found: Any = config.get("image_grid_pinpoints")
    if isinstance(found, str) and (match := _RANGE.fullmatch(found)):  # "(1x1),...,(6x6)" in tiles
        a, b, c, d = map(int, match.groups())
        found = [[side * i, side * j] for i in range(a, c + 1) for j in range(b, d + 1)]
    if (
        not isinstance(found, list)
        or not found
        or not all(isinstance(pair, list) and len(pair) == 2 for pair in found)
        or not all(
            type(n) is int and side <= n <= MAX_SIDE and n % side == 0
            for pair in found
            for n in pair
        )
    ):
        expected = f"pairs of pixels, multiples of {side}"
        raise config.wrong("image_grid_pinpoints", expected, "ask without the image")
    return tuple((width, height) for width, height in found)


def _open(image: str | os.PathLike[str] | Image.Image) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        with Image.open(image) as opened:
            picture: Image.Image = opened.convert("RGB")
            return picture
    except (OSError, ValueError, Image.DecompressionBombError) as exc:
        raise FeatstoreError(
            f"{os.fspath(image)} cannot be read as an image ({exc}); repair the file"
        ) from exc


def _fit(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Return `picture` as large as it fits, centered on black."""
    across, down = width / picture.width, height / picture.height
    if across < down:
        size = width, min(math.ceil(picture.height * across), height)
    else:
        size = min(math.ceil(picture.width * down), width), height
    canvas = Image.new("RGB", (width, height))
    canvas.paste(picture.resize(size), ((width - size[0]) // 2, (height - size[1]) // 2))
    return canvas
