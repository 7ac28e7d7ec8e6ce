"""Colours of tokens: like tokens get like colours, everywhere and each time, in every geometry."""

import dataclasses

import numpy as np
import pytest
from sample_records import HEADER, joined

from featstore.geometry import RowLayout
from featstore.records.features import Features
from featstore.records.quantization import quantize
from featstore.records.record import Record
from featstore.records.storage import Storage
from featstore.report.components import colour_tokens

GRID = RowLayout(units=3, tokens_per_unit=4, grid=(3, 2, 2))


def features_of(
    x: np.ndarray, layout: RowLayout = GRID, storage: Storage | None = None
) -> Features:
    """Features with the rows `x` (rows, width)."""
    storage = storage or Storage("fp32")
    stored, scales = quantize(x.astype(np.float32), storage)
    header = dataclasses.replace(HEADER, shape=x.shape, layout=layout, storage=storage)
    parts = memoryview(joined(scales)), memoryview(stored.tobytes())
    return Features(header, Record(header, *parts))


def ramp(rows: int = 12, width: int = 5) -> np.ndarray:
    """Rows that differ in one value only, which rises."""
    x = np.zeros((rows, width))
    x[:, 2] = np.arange(rows)
    return x


def test_tokens_that_are_alike_have_one_colour_and_others_another():
    kinds = np.array([0, 1, 2, 0, 1, 1, 2, 2, 0, 0, 1, 2])
    cells = colour_tokens(features_of(np.eye(3, 6)[kinds] * 9), [0, 1, 2]).cells
    assert cells.shape == (3, 2, 2, 3)
    pixels = list(map(tuple, cells.reshape(-1, 3).tolist()))
    assert len(set(pixels)) == len(set(zip(kinds.tolist(), pixels, strict=True))) == 3


def test_units_are_those_asked_for():
    features = features_of(ramp())
    every, last = (colour_tokens(features, units).cells for units in ([0, 1, 2], [2]))
    assert np.array_equal(every[2:], last)


def test_a_component_rises_with_its_largest_weight():
    """SVD may give it either sign."""
    for sign in (1, -1):
        red = colour_tokens(features_of(sign * ramp()), [0, 1, 2]).cells[..., 0].ravel().astype(int)
        assert (sign * np.diff(red) >= 0).all()
        assert abs(red[-1] - red[0]) > 200


def test_components_that_do_not_vary_are_grey():
    cells = colour_tokens(features_of(ramp()), [1]).cells
    assert (cells[..., 1:] == 128).all()
    still = colour_tokens(features_of(np.ones((12, 5))), [1])
    assert (still.cells == 128).all()
    assert still.share == 0


def test_a_token_far_off_takes_no_component():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 16)) * np.linspace(4, 0.1, 16)
    layout = RowLayout(units=4, tokens_per_unit=100, grid=(4, 10, 10))
    before = colour_tokens(features_of(x, layout), [0]).cells.astype(int)
    x[399] = 1e6 * rng.normal(size=16)
    after = colour_tokens(features_of(x, layout), [0]).cells.astype(int)
    assert np.abs(before - after).mean() < 12


@pytest.mark.parametrize("storage", [Storage("int8", "channel_token"), Storage("int8", "token")])
def test_stored_values_have_the_scales_of_their_rows(storage):
    x = np.random.default_rng(2).normal(size=(12, 8)) * np.arange(1, 13)[:, None]
    exact = colour_tokens(features_of(x), [2]).cells.astype(int)
    found = colour_tokens(features_of(x, storage=storage), [2]).cells.astype(int)
    assert np.abs(exact - found).max() < 12


def test_values_as_large_as_they_may_be_have_colours():
    found = colour_tokens(features_of(ramp() * 3e37), [0, 1, 2])
    assert found.share == pytest.approx(1)
    assert len(np.unique(found.cells)) > 8


GEOMETRIES = {
    "a frame has one token": RowLayout(units=12, tokens_per_unit=1),
    "its 4 tokens are is not known": RowLayout(units=3, tokens_per_unit=4),
    "first of a unit of 2 frames": RowLayout(3, 4, frames_per_unit=2, stride=2, grid=(3, 2, 2)),
    "not shown: one row that belongs to no frame": RowLayout(11, 1, extra_rows=1),
    "of the 2 planes of a row the first": RowLayout(3, 4, planes=2, grid=(3, 2, 2)),
}


@pytest.mark.parametrize("note", GEOMETRIES)
def test_a_note_says_what_is_not_shown(note):
    layout = GEOMETRIES[note]
    x = np.random.default_rng(3).normal(size=(12, 6))
    found = colour_tokens(features_of(x, layout), [0, 1])
    assert note in "; ".join(found.notes)
    x[:, 6 // layout.planes :] = 0  # the second plane, if there is one
    x[layout.units * layout.tokens_per_unit :] = 0
    same = colour_tokens(features_of(x, layout), [0, 1])
    assert np.array_equal(found.cells, same.cells)


def test_a_grid_needs_no_note():
    assert colour_tokens(features_of(ramp()), [0]).notes == []


def test_tokens_without_places_fill_a_square_line_by_line():
    layout = RowLayout(units=2, tokens_per_unit=5)
    cells = colour_tokens(features_of(ramp(10), layout), [0, 1]).cells
    assert cells.shape == (2, 2, 3, 3)
    assert (cells[:, 1, 2] == 128).all()  # no token
