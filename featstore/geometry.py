"""How the rows of a video's features follow from its frames: what an encoder says, and what a record says.

Consecutive sampled frames make a unit: one frame of an image encoder, two of Qwen-VL's, the window of a clip encoder.
A unit gives tokens, each a row; rows that belong to no unit, as a newline token, follow at the end. A row holds one or
several planes of `hidden_dim` values.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_FRAMES = 65_536
_MOST = {
    "units": MAX_FRAMES,
    "frames_per_unit": MAX_FRAMES,
    "stride": MAX_FRAMES,
    "tokens_per_unit": 1 << 24,
    "extra_rows": 1 << 24,
    "planes": 256,
    "hidden_dim": 1 << 24,
}


@dataclass(frozen=True)
class Geometry:
    """The rows that an encoder makes of frames.

    Args:
        tokens_per_unit: number of tokens of a unit; the most, if `by_video`.
        hidden_dim: values of a plane of a row.
        frames_per_unit: number of frames that make a unit.
        stride: frames from the first of a unit to the first of the next; units overlap if it is less than
            `frames_per_unit`.
        extra_rows: rows after those of the units.
        planes: planes of a row.
        grid: (height, width) of a unit's tokens, if they are the cells of a grid of that size.
        by_video: whether the tokens of a unit are a grid whose size depends on the video.

    Raises:
        ValueError: a number is out of bounds, or the grid has another number of tokens.

    >>> Geometry(tokens_per_unit=8, hidden_dim=16, frames_per_unit=4, stride=2).units(9)
    4
    """

    tokens_per_unit: int
    hidden_dim: int
    frames_per_unit: int = 1
    stride: int = 1
    extra_rows: int = 0
    planes: int = 1
    grid: tuple[int, int] | None = None
    by_video: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        _check_bounds(self)
        if self.grid is not None and (
            self.by_video
            or min(self.grid) < 1
            or self.grid[0] * self.grid[1] != self.tokens_per_unit
        ):
            raise ValueError(
                f"grid is {self.grid}; it needs {self.tokens_per_unit} cells, and is None if it differs by video"
            )

    @property
    def row_width(self) -> int:
        """Return the number of values of a row."""
        return self.planes * self.hidden_dim

    def units(self, frames: int) -> int:
        """Return how many units `frames` make: all frames are in one, the last is filled with the last frame."""
        return 1 + max(0, -(-(frames - self.frames_per_unit) // self.stride))

    def max_rows(self, frames: int) -> int:
        """Return the most rows of a video of which `frames` were sampled."""
        return self.units(frames) * self.tokens_per_unit + self.extra_rows

    def layout(self, frames: int, grid: tuple[int, int] | None = None) -> RowLayout:
        """Return the rows of a video.

        Args:
            frames: number of frames that were sampled.
            grid: (height, width) of a unit's tokens; needed if they differ by video.

        Raises:
            ValueError: the grid is missing, or larger than the encoder says.
        """
        if self.by_video and (grid is None or grid[0] * grid[1] > self.tokens_per_unit):
            raise ValueError(
                f"the tokens of a unit are a grid of {grid}; at most {self.tokens_per_unit} cells fit"
            )
        if not self.by_video and grid not in (None, self.grid):
            raise ValueError(
                f"the tokens of a unit are a grid of {grid}; it is {self.grid} for all"
            )
        cells = grid if self.by_video else self.grid
        units = self.units(frames)
        return RowLayout(
            units=units,
            tokens_per_unit=cells[0] * cells[1] if cells else self.tokens_per_unit,
            frames_per_unit=self.frames_per_unit,
            stride=self.stride,
            extra_rows=self.extra_rows,
            planes=self.planes,
            grid=(units, *cells) if cells else None,
        )


@dataclass(frozen=True)
class RowLayout:
    """What the rows of one video's features are.

    Args:
        units: number of units; unit `i` is made of `frames_per_unit` frames from number `i * stride` on, the last
            frame repeated if it has fewer.
        tokens_per_unit: number of tokens of a unit.
        frames_per_unit: as in Geometry.
        stride: as in Geometry.
        extra_rows: as in Geometry.
        planes: as in Geometry.
        grid: (units, height, width) if the tokens of a unit are the cells of a grid, row by row.

    Raises:
        ValueError: a number is out of bounds, or the grid has another number of tokens.
    """

    units: int
    tokens_per_unit: int
    frames_per_unit: int = 1
    stride: int = 1
    extra_rows: int = 0
    planes: int = 1
    grid: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        _check_bounds(self)
        if self.grid is not None:
            count, height, width = self.grid
            if (
                count != self.units
                or min(height, width) < 1
                or height * width != self.tokens_per_unit
            ):
                raise ValueError(
                    f"grid is {self.grid}; {self.units} units of {self.tokens_per_unit} tokens need another"
                )

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return self.units * self.tokens_per_unit + self.extra_rows


def _check_bounds(numbers: Geometry | RowLayout) -> None:
    for name, value in vars(numbers).items():
        least, most = int(name != "extra_rows"), _MOST.get(name)
        if most is not None and not (type(value) is int and least <= value <= most):
            raise ValueError(f"{name} is {value!r}; it must be an integer from {least} to {most}")
    if numbers.stride > numbers.frames_per_unit:
        raise ValueError(
            f"stride is {numbers.stride}; more than frames_per_unit = {numbers.frames_per_unit} would leave frames out"
        )
