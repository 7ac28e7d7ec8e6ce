"""How many rows frames make, and what a record says about them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featstore.fields import build, to_plain
from featstore.geometry import MAX_FRAMES, Geometry, RowLayout

PLAIN = Geometry(tokens_per_unit=4, hidden_dim=8)
BY_VIDEO = Geometry(tokens_per_unit=12, hidden_dim=8, by_video=True)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    frames_per_unit, grid = draw(st.integers(1, 20)), draw(st.none() | st.just((2, 3)))
    return Geometry(
        tokens_per_unit=6 if grid else draw(st.integers(1, 30)),
        hidden_dim=draw(st.integers(1, 9)),
        frames_per_unit=frames_per_unit,
        stride=draw(st.integers(1, frames_per_unit)),
        extra_rows=draw(st.integers(0, 3)),
        planes=draw(st.integers(1, 3)),
        grid=grid,
        by_video=not grid and draw(st.booleans()),
    )


@given(geometries(), st.integers(1, 200))
def test_each_unit_begins_with_a_frame_and_no_frame_is_left_out(geometry, frames):
    units, stride = geometry.units(frames), geometry.stride
    assert units >= 1
    assert (units - 1) * stride < frames
    seen = {i * stride + k for i in range(units) for k in range(geometry.frames_per_unit)}
    assert set(range(frames)) <= seen
    if units > 1:  # and one unit fewer would not do
        assert (units - 2) * stride + geometry.frames_per_unit < frames


@given(geometries(), st.integers(1, 200))
def test_a_layout_has_the_rows_of_its_units_and_never_more_than_the_most(geometry, frames):
    grid = (2, 3) if geometry.by_video and geometry.tokens_per_unit >= 6 else None
    if geometry.by_video and grid is None:
        with pytest.raises(ValueError, match="the tokens of a unit are a grid of None"):
            geometry.layout(frames)
        return
    layout = geometry.layout(frames, grid)
    cells = geometry.grid or grid
    assert layout.grid == ((layout.units, *cells) if cells else None)
    assert layout.units == geometry.units(frames)
    assert layout.rows == layout.units * layout.tokens_per_unit + geometry.extra_rows
    assert layout.rows <= geometry.max_rows(frames)
    assert build(RowLayout, to_plain(layout)) == layout
    assert build(Geometry, to_plain(geometry)) == geometry


def test_more_frames_never_make_fewer_rows():
    geometry = Geometry(tokens_per_unit=3, hidden_dim=1, frames_per_unit=16, stride=8)
    rows = [geometry.max_rows(frames) for frames in range(1, 100)]
    assert rows == sorted(rows)


def test_a_grid_by_video_may_be_any_that_fits():
    assert BY_VIDEO.layout(5, (3, 4)).rows == 60
    assert BY_VIDEO.layout(5, (1, 1)).grid == (5, 1, 1)
    for grid in (None, (4, 4), (13, 1)):
        with pytest.raises(ValueError, match="at most 12 cells fit"):
            BY_VIDEO.layout(5, grid)
    for grid in ((0, 0), (0, 5), (-2, -2)):
        with pytest.raises(ValueError, match=r"tokens_per_unit is|need another"):
            BY_VIDEO.layout(5, grid)


def test_a_grid_that_is_not_the_encoders_is_refused():
    geometry = Geometry(4, 8, grid=(2, 2))
    assert geometry.layout(3, (2, 2)) == geometry.layout(3)
    for fixed in (geometry, Geometry(4, 8)):
        with pytest.raises(ValueError, match="grid of"):
            fixed.layout(3, (100, 100))


BOUNDS = [
    ("tokens_per_unit", 1, 1 << 24),
    ("hidden_dim", 1, 1 << 24),
    ("frames_per_unit", 1, MAX_FRAMES),
    ("extra_rows", 0, 1 << 24),
    ("planes", 1, 256),
]


@pytest.mark.parametrize(("name", "least", "most"), BOUNDS)
def test_numbers_have_bounds_which_are_allowed_themselves(name, least, most):
    for value in (least, most):
        assert getattr(replace(PLAIN, **{name: value}), name) == value
    for value in (least - 1, most + 1):
        with pytest.raises(
            ValueError, match=f"{name} is {value}; it must be an integer from {least} to {most}"
        ):
            replace(PLAIN, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("units", 0), ("units", MAX_FRAMES + 1), ("planes", 0)]
)
def test_a_layout_has_the_same_bounds(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be an integer from"):
        replace(RowLayout(1, 1), **{name: value})


@pytest.mark.parametrize("kind", [Geometry(1, 1), RowLayout(1, 1)])
def test_a_stride_that_leaves_frames_out_is_refused(kind):
    with pytest.raises(ValueError, match="stride is 3; more than frames_per_unit = 2 would leave"):
        replace(kind, frames_per_unit=2, stride=3)
    replace(kind, frames_per_unit=2, stride=2)


@pytest.mark.parametrize("grid", [(2, 3), (1, 5), (0, 4), (-2, -2), (-1, -4)])
def test_a_grid_of_another_number_of_cells_is_refused(grid):
    with pytest.raises(ValueError, match="it needs 4 cells"):
        replace(PLAIN, grid=grid)
    with pytest.raises(ValueError, match="need another"):
        RowLayout(1, 4, grid=(1, *grid))


def test_a_grid_of_another_number_of_units_is_refused():
    with pytest.raises(ValueError, match="2 units of 4 tokens need another"):
        RowLayout(2, 4, grid=(1, 2, 2))


def test_a_grid_by_video_has_no_size_of_its_own():
    with pytest.raises(ValueError, match="is None if it differs by video"):
        replace(BY_VIDEO, grid=(3, 4))
