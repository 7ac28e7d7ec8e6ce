"""A picture of one video: sampled frames, and under each its features as colours, with the times."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from featstore import defaults
from featstore.errors import VideoError, plain_line
from featstore.report.components import TokenColours, colour_tokens
from featstore.report.sampled_frames import decode_again

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from featstore.records.features import Features
    from featstore.records.header import Header
    from featstore.spec import FeatureSpec

MAX_COLUMNS = 64
_MARGIN, _GAP = 32, 10  # pixels
_CELL = 168  # pixels that a column is wide, about: cells of a grid are of whole pixels
_TALLEST = 2.0  # times as high as wide
_NARROWEST = 640  # pixels for texts
_PAPER, _INK, _FAINT = (22, 24, 29), (240, 240, 238), (160, 164, 172)


@dataclass(frozen=True)
class Strip:
    """A picture of one video.

    Attributes:
        image: the picture, RGB.
        captions: what is under each column, its time in the video.
        frames: numbers of the frames of the clip that are shown; none if they are not known.
        share: how much of the variance of the features the colours have, 0 to 1.
        notes: what it does not show, and why, a clause each.
    """

    image: Image.Image
    captions: list[str]
    frames: list[int]
    share: float
    notes: list[str] = field(default_factory=list)


def draw_strip(
    features: Features,
    spec: FeatureSpec,
    *,
    path: str = "",
    columns: int = defaults.STRIP_COLUMNS,
    timeout: float = defaults.DECODE_TIMEOUT,
) -> Strip:
    """Return evenly spaced sampled frames of a video above the principal components of their features.

    Args:
        features: the video's features, of any geometry.
        spec: their feature set, which says how frames are decoded and prepared.
        path: the video's file, by default where it was ingested. Without it, or if it is another file than the one
            that was encoded, the features only are shown, and a note says why.
        columns: number of frames to show, 1 to 64; fewer if the video has fewer units.
        timeout: seconds that decoding may take.

    Raises:
        ValueError: there are no such columns.
        RecordError: the features are damaged.
    """
    if not 1 <= columns <= MAX_COLUMNS:
        raise ValueError(f"columns is {columns}; it must be from 1 to {MAX_COLUMNS}")
    header = features.header
    layout, count = header.layout, min(columns, header.layout.units)
    units = [round(i * (layout.units - 1) / max(1, count - 1)) for i in range(count)]
    colours = colour_tokens(features, units)
    places = [unit * layout.stride for unit in units]
    notes, frames = list(colours.notes), None
    try:
        frames = decode_again(header, spec, path or header.video_path, places, timeout=timeout)
    except VideoError as exc:
        notes.insert(0, f"no frames: {exc}")
    shown = [] if spec.imported else [header.frames[place] for place in places]
    times = [_time(header, frame) for frame in shown]
    if spec.imported:  # such a record has no numbers of frames
        times = [f"{place + 1} of {len(header.frames)}" for place in places]
    image = _stack(_bands(header, spec, frames, colours, times, notes))
    return Strip(image, times, shown, colours.share, notes)


def _time(header: Header, frame: int) -> str:
    """Return when a frame is shown, as `1:03.2`; its number if the clip states no rate."""
    if not (math.isfinite(header.fps) and header.fps > 0):
        return f"frame {frame}"
    minutes, tenths = divmod(round(10 * frame / header.fps), 600)
    hours, minutes = divmod(minutes, 60)
    start = f"{hours}:{minutes:02}" if hours else f"{minutes}"
    return f"{start}:{tenths // 10:02}.{tenths % 10}"


def _bands(
    header: Header,
    spec: FeatureSpec,
    frames: NDArray[np.uint8] | None,
    colours: TokenColours,
    times: list[str],
    notes: list[str],
) -> Iterator[Image.Image]:
    """Yield the picture's parts from top to bottom, all of one width."""
    count, height, width, _ = colours.cells.shape
    shape = (height, width) if frames is None else frames.shape[1:3]
    wide = round(_CELL / width) * width if width <= _CELL else _CELL
    size = wide, max(1, round(wide * min(_TALLEST, shape[0] / shape[1])))
    across = max(count * (wide + _GAP) - _GAP, _NARROWEST)
    subject = (
        f"{header.dataset}, feature set {header.spec[:8]}: {spec.encoder.family}, {spec.sampling}"
    )
    yield _text(header.video_id, 26, _INK, across)
    yield _text(subject, 15, _FAINT, across)
    if frames is not None:
        yield _pictures(frames, size, across)
    yield _pictures(colours.cells, size, across)
    yield _captions(times, wide, across)
    legend = f"Colours: the first three principal components, {colours.share:.0%} of the variance"
    yield _text("; ".join([legend, *notes]), 15, _FAINT, across)


def _text(text: str, size: int, ink: tuple[int, int, int], across: int) -> Image.Image:
    """Return a few lines of text; a longer one is cut."""
    font = ImageFont.load_default(size)
    text = plain_line(text)
    fit = int(0.96 * across * len(text) / font.getlength(text))  # characters of a line
    lines = textwrap.wrap(text, max(fit, 8), max_lines=4, placeholder=" ...") or [""]
    band = Image.new("RGB", (across, math.ceil(1.4 * size) * len(lines)), _PAPER)
    ImageDraw.Draw(band).multiline_text((0, 0), "\n".join(lines), ink, font, spacing=0.3 * size)
    return band


def _pictures(pictures: NDArray[np.uint8], size: tuple[int, int], across: int) -> Image.Image:
    """Return pictures (N, H, W, 3) side by side; those smaller than `size` in cells with sharp edges."""
    band = Image.new("RGB", (across, size[1]), _PAPER)
    smaller = pictures.shape[2] <= size[0] and pictures.shape[1] <= size[1]
    how = Image.Resampling.NEAREST if smaller else Image.Resampling.LANCZOS
    for i, picture in enumerate(pictures):
        image = Image.fromarray(picture).resize(size, how)
        band.paste(image, (i * (size[0] + _GAP), 0))
    return band


def _captions(texts: list[str], wide: int, across: int) -> Image.Image:
    """Return a line of texts, each in the middle of its column."""
    band = Image.new("RGB", (across, 22), _PAPER)
    draw, font = ImageDraw.Draw(band), ImageFont.load_default(16)
    for i, text in enumerate(texts):
        draw.text((i * (wide + _GAP) + wide / 2, 0), text, _INK, font, anchor="ma")
    return band


def _stack(bands: Iterable[Image.Image]) -> Image.Image:
    """Return the bands one below the other, with a margin around them."""
    found = list(bands)
    height = sum(band.height + _GAP for band in found) - _GAP
    image = Image.new("RGB", (found[0].width + 2 * _MARGIN, height + 2 * _MARGIN), _PAPER)
    y = _MARGIN
    for band in found:
        image.paste(band, (_MARGIN, y))
        y += band.height + _GAP
    return image
