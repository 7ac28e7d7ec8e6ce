"""Make three short H.264 clips to try featstore on, with the same pictures every time."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

import av
import click
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    # draw(index, width, height) -> (height, width, 3) uint8 RGB
    Draw = Callable[[int, int, int], np.ndarray]

ENCODERS = ("libx264", "libopenh264", "mpeg4")  # the first one this build of PyAV has

# With its macroblock tree x264 writes other bytes from one time to the next.
OPTIONS = {"preset": "veryfast", "x264-params": "mbtree=0"}

BAR_COLORS = np.array(
    [
        (192, 192, 192),
        (192, 192, 0),
        (0, 192, 192),
        (0, 192, 0),
        (192, 0, 192),
        (192, 0, 0),
        (0, 0, 192),
    ],
    dtype=np.uint8,
)


@click.command()
@click.argument("out_dir", type=click.Path(file_okay=False, path_type=Path))
def main(out_dir: Path) -> None:
    """Write bouncing_ball.mp4, color_bars.mp4 and blink.mp4 to OUT_DIR and print their paths."""
    for path in make_sample_clips(out_dir):
        click.echo(path)


def make_sample_clips(out_dir: Path | str) -> list[Path]:
    """Write a landscape clip, a portrait clip and one of five frames to `out_dir`."""
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    ball, bars, eye = (out / f"{name}.mp4" for name in ("bouncing_ball", "color_bars", "blink"))
    return [
        make_clip(ball, width=640, height=360, fps=20, frames=160, draw=draw_bouncing_ball),
        make_clip(bars, width=432, height=768, fps=30, frames=90, draw=draw_color_bars),
        make_clip(eye, width=350, height=262, fps=10, frames=5, draw=draw_blink),
    ]


def make_clip(
    path: Path | str, *, width: int, height: int, fps: int, frames: int, draw: Draw
) -> Path:
    """Encode `frames` pictures of `draw(index, width, height)` and return the clip's path.

    The clip appears under its name whole or not at all; one of that name is replaced. Width and
    height are even, as yuv420p wants them.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        with av.open(str(part), "w", format="mp4") as container:
            added = container.add_stream(_encoder(), rate=fps, options=OPTIONS)
            stream = cast("av.VideoStream", added)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.thread_count = 1  # x264's output depends on the number of threads
            for index in range(frames):
                picture = av.VideoFrame.from_ndarray(draw(index, width, height), format="rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def draw_bouncing_ball(index: int, width: int, height: int) -> np.ndarray:
    """Draw a yellow ball crossing a color gradient and bouncing off its edges."""
    y, x = np.ogrid[:height, :width]
    radius = height // 8
    center_x = radius + _fold(7 * index, width - 2 * radius)
    center_y = radius + _fold(5 * index, height - 2 * radius)
    picture = np.empty((height, width, 3), np.uint8)
    picture[..., 0] = 255 * x // width
    picture[..., 1] = 255 * y // height
    picture[..., 2] = _fold(2 * index, 255)
    picture[(x - center_x) ** 2 + (y - center_y) ** 2 < radius**2] = (255, 224, 32)
    return picture


def draw_color_bars(index: int, width: int, height: int) -> np.ndarray:
    """Draw the bars of a television test card, scrolling to the left and darker at the foot."""
    x = np.arange(width) + 3 * index
    bars = BAR_COLORS[x * len(BAR_COLORS) // width % len(BAR_COLORS)]  # (W, 3)
    light = 256 - 128 * np.arange(height) // height  # (H,): 256 down to 129
    return (bars * light[:, None, None] // 256).astype(np.uint8)


def draw_blink(index: int, width: int, height: int) -> np.ndarray:
    """Draw an eye that is open, shut at frame 2, and open again at frame 4."""
    y, x = np.ogrid[:height, :width]
    x, y = x - width // 2, y - height // 2
    wide, tall = width // 3, abs(2 - index) * height // 8
    lids = (tall * x) ** 2 + (wide * y) ** 2 < (wide * tall) ** 2
    distance = x**2 + y**2
    picture = np.full((height, width, 3), (206, 160, 130), np.uint8)
    picture[lids] = (245, 245, 240)
    picture[lids & (distance < (height // 5) ** 2)] = (60, 110, 170)
    picture[lids & (distance < (height // 12) ** 2)] = (10, 10, 16)
    return picture


def _fold(distance: int, span: int) -> int:
    """Return where a walk of `distance` ends that turns around at 0 and at `span`."""
    return span - abs(distance % (2 * span) - span)


def _encoder() -> str:
    for name in ENCODERS:
        with suppress(av.codec.codec.UnknownCodecError):
            return av.Codec(name, "w").name
    raise RuntimeError(f"this build of PyAV has none of the encoders {', '.join(ENCODERS)}")


if __name__ == "__main__":
    main()
