"""Small clips, each with pictures of its own, and files that are no videos."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from make_sample_clips import make_clip

if TYPE_CHECKING:
    from pathlib import Path

BROKEN = {"empty": b"", "garbage": b"no video" * 100}


def make_clips(folder: Path, count: int, *, broken: bool = True) -> None:
    """Write `count` clips v000.mp4, v001.mp4, ... of ten frames to `folder`, and the `BROKEN` ones beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = folder / f"v{number:03}.mp4"
        make_clip(path, width=64, height=48, fps=10, frames=10, draw=partial(_draw, number))
    for name, content in BROKEN.items() if broken else ():
        (folder / f"{name}.mp4").write_bytes(content)


def _draw(number: int, index: int, width: int, height: int) -> np.ndarray:
    """Draw 8 x 8 blocks of colors that only this frame of this clip has."""
    rng = np.random.default_rng((number, index))
    blocks = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)
