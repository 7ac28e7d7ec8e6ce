"""The first three principal components of a video's features, as colours of the tokens on their grid.

Tokens that look alike to the encoder get like colours, in all frames of the video. What the colours mean differs from
one video to the next.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featstore.records.quantization import dequantize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from featstore.geometry import RowLayout
    from featstore.records.features import Features

# Rows that components are found from: 4096, or as many as have so many values, 585 of 3584; a second or two.
_SAMPLE_ROWS, _SAMPLE_VALUES = 4096, 1 << 21
_FARTHEST = (
    3.0  # times the median distance from the mean; tokens farther off would take a component each
)
_ENDS = (2.0, 98.0)  # percentiles of a component that get its darkest and its lightest colour


@dataclass(frozen=True)
class TokenColours:
    """What colours the tokens of some units have.

    Attributes:
        cells: uint8 RGB, (units, height, width, 3).
        share: how much of the variance of the features the three components have, 0 to 1.
        notes: what the colours do not show, a clause each.
    """

    cells: NDArray[np.uint8]
    share: float
    notes: list[str]


def colour_tokens(features: Features, units: Sequence[int]) -> TokenColours:
    """Return the colours of the tokens of `units`, from components of the whole video.

    Args:
        features: a video's features, of any geometry.
        units: numbers of the units to colour.

    Raises:
        RecordError: a compressed payload is damaged.
    """
    layout = features.header.layout
    tokens, (height, width), notes = layout.tokens_per_unit, *_cells(layout)
    dim = features.shape[1] // layout.planes
    count = layout.units * tokens
    size = min(count, _SAMPLE_ROWS, max(8, _SAMPLE_VALUES // dim))
    # By chance and not evenly: a step that a grid's width divides would see some columns only.
    chosen = np.sort(np.random.default_rng(0).choice(count, size, replace=False))
    found = _Components.of(_rows(features, chosen, dim))
    shown = np.full((len(units), height * width, 3), 128, np.uint8)
    for colours, unit in zip(shown, units, strict=True):
        for start in range(0, tokens, size):  # a unit may have millions
            rows = unit * tokens + np.arange(start, min(start + size, tokens))
            colours[start : start + len(rows)] = found.colours(_rows(features, rows, dim))
    return TokenColours(shown.reshape(-1, height, width, 3), found.share, notes)


def _cells(layout: RowLayout) -> tuple[tuple[int, int], list[str]]:
    """Return (height, width) of the picture of a unit, and what it does not show."""
    notes, tokens = [], layout.tokens_per_unit
    unit = "frame" if layout.frames_per_unit == 1 else f"unit of {layout.frames_per_unit} frames"
    size = layout.grid[1:] if layout.grid else (1, 1)
    if tokens == 1:
        notes.append(f"a {unit} has one token, and so one colour")
    elif layout.grid is None:
        wide = math.isqrt(tokens - 1) + 1
        size = -(-tokens // wide), wide
        notes.append(
            f"where in a {unit} its {tokens} tokens are is not known: they are in order, line by line"
        )
    if layout.frames_per_unit > 1:
        notes.append(f"the picture above the colours is the first of a {unit}")
    if layout.planes > 1:
        notes.append(f"of the {layout.planes} planes of a row the first is shown")
    if layout.extra_rows:
        rows = (
            "one row that belongs"
            if layout.extra_rows == 1
            else f"{layout.extra_rows} rows that belong"
        )
        notes.append(f"not shown: {rows} to no {unit}")
    return size, notes


def _rows(features: Features, rows: NDArray[Any], dim: int) -> NDArray[np.float64]:
    """Return the first plane of some rows, (len(rows), dim)."""
    scales = tuple(scale[rows] if len(scale) > 1 else scale for scale in features.scales)
    found = dequantize(features.data[rows], scales, features.header.storage.values)
    return found[:, :dim].astype(np.float64)


@dataclass(frozen=True)
class _Components:
    mean: NDArray[np.float64]  # (D,)
    farthest: float  # distance from the mean to which tokens are drawn
    axes: NDArray[Any]  # (3, D); fewer if there are fewer
    low: NDArray[Any]  # (3,), and so `high`
    high: NDArray[Any]
    share: float

    @classmethod
    def of(cls, sample: NDArray[np.float64]) -> _Components:
        """Return the components of `sample` (N, D)."""
        mean = np.median(sample, axis=0)
        farthest = _FARTHEST * float(np.median(np.linalg.norm(sample - mean, axis=1)))
        near = _drawn_near(sample - mean, farthest)
        centre = near.mean(axis=0)
        _, sizes, axes = np.linalg.svd(near - centre, full_matrices=False)
        axes = axes[:3]
        # SVD leaves signs open: the largest weight of a component is positive.
        largest = np.abs(axes).argmax(axis=1)
        axes = axes * np.where(axes[np.arange(len(axes)), largest] < 0, -1, 1)[:, None]
        low, high = np.percentile(near @ axes.T, _ENDS, axis=0)
        total = float((sizes**2).sum())
        return cls(mean, farthest, axes, low, high, float((sizes[:3] ** 2).sum()) / (total or 1.0))

    def colours(self, rows: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Return the colours of `rows` (N, D), uint8 (N, 3); components that do not vary are grey."""
        found = _drawn_near(rows - self.mean, self.farthest) @ self.axes.T  # (N, D) -> (N, 3)
        span = self.high - self.low
        parts = np.full((len(rows), 3), 0.5)
        varying = np.flatnonzero(span > 0)
        parts[:, varying] = (found[:, varying] - self.low[varying]) / span[varying]
        return (parts.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _drawn_near(rows: NDArray[np.float64], farthest: float) -> NDArray[np.float32]:
    """Return `rows`, relative to the mean, in units of `farthest`, those farther off drawn to it."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    near: NDArray[np.float32] = (rows / np.maximum(norms, farthest or 1.0)).astype(np.float32)
    return near
