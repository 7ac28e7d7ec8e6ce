from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from featstore.fields import build, to_plain
from featstore.preprocessing import (
    MAX_EDGE,
    ExactResize,
    PixelBudget,
    Preprocessing,
    ShortestEdgeCrop,
    VideoPixelBudget,
    frame_bytes,
    normalization_table,
    prepare_frame,
)

SQUARE = ShortestEdgeCrop(shortest_edge=24, crop_height=24, crop_width=24)
WHOLE = ShortestEdgeCrop(shortest_edge=0, crop_height=24, crop_width=20)
EXACT = ExactResize(height=18, width=30)
BUDGET = PixelBudget(multiple=14, min_pixels=4 * 196, max_pixels=40 * 196)


def picture(width: int, height: int) -> np.ndarray:
    rng = np.random.default_rng(width * 10_000 + height)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("width", "height", "resized"),
    [
        (64, 36, (42, 24)),
        (36, 64, (24, 42)),
        (30, 30, (24, 24)),
        (24, 25, (24, 25)),
        (7, 3, (56, 24)),
    ],
)
def test_the_shorter_side_is_resized_and_the_centre_kept(width, height, resized):
    frame = picture(width, height)
    image = Image.fromarray(frame).resize(resized, Image.Resampling.BICUBIC)
    left, top = (resized[0] - 24) // 2, (resized[1] - 24) // 2
    cropped = np.asarray(image.crop((left, top, left + 24, top + 24)))
    assert np.array_equal(prepare_frame(frame, SQUARE), cropped)


@pytest.mark.parametrize("resample", list(Image.Resampling))
def test_the_filter_is_pillows_of_that_number(resample):
    frame = picture(30, 30)
    pre = replace(SQUARE, resample=int(resample))
    there = np.asarray(Image.fromarray(frame).resize((24, 24), resample))
    assert np.array_equal(prepare_frame(frame, pre), there)


def test_without_a_shortest_edge_the_frame_is_only_cropped():
    frame = picture(31, 29)
    assert np.array_equal(prepare_frame(frame, WHOLE), frame[2:26, 5:25])


@given(st.integers(1, 90), st.integers(1, 90))
def test_every_frame_comes_out_in_the_promised_shape(width, height):
    for pre in (SQUARE, EXACT):
        out = prepare_frame(picture(width, height), pre)
        assert (out.shape, out.dtype) == ((*pre.max_frame, 3), np.uint8)
        assert out.nbytes == frame_bytes(pre)


def test_a_frame_smaller_than_the_crop_is_refused():
    with pytest.raises(ValueError, match="20 x 30 pixels cannot be cropped to 20 x 32"):
        prepare_frame(picture(20, 30), replace(WHOLE, crop_width=20, crop_height=24 + 8))


@pytest.mark.parametrize("size", [(30, 18), (18, 30), (7, 5)])
def test_an_exact_resize_stretches_a_frame_of_any_shape(size):
    frame = picture(*size)
    image = Image.fromarray(frame).resize((30, 18), Image.Resampling.BICUBIC)
    assert np.array_equal(prepare_frame(frame, EXACT), np.asarray(image))


@given(st.integers(1, 2000), st.integers(1, 2000))
def test_a_pixel_budget_gives_multiples_within_its_bounds(width, height):
    try:
        tall, wide = BUDGET.size_of(height, width)
    except ValueError:
        tall = wide = 0
    if not tall:
        assert max(width, height) > 30 * min(width, height)  # forty cells in a row are the most
        return
    assert tall % 14 == wide % 14 == 0
    assert 4 * 196 <= tall * wide <= 40 * 196
    assert tall * wide * 3 <= frame_bytes(BUDGET)


@given(st.integers(20, 2000), st.integers(20, 2000))
def test_a_pixel_budget_is_that_of_transformers(width, height):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    try:
        here = BUDGET.size_of(height, width)
    except ValueError:
        return
    assert here == smart_resize(height, width, 14, 4 * 196, 40 * 196)


def test_a_frame_keeps_nearly_its_shape_within_a_pixel_budget():
    assert prepare_frame(picture(200, 100), BUDGET).shape == (56, 112, 3)
    assert prepare_frame(picture(28, 42), BUDGET).shape == (42, 28, 3)
    assert prepare_frame(picture(5, 5), BUDGET).shape == (28, 28, 3)
    with pytest.raises(ValueError, match="more than 200 times as long as wide"):
        BUDGET.size_of(1, 300)


@pytest.mark.parametrize(
    ("multiple", "least", "most"),
    [
        (0, 1, 100),
        (14, 1, 195),
        (14, 400, 300),
        (-14, 1, 400),
        (14, 0, 400),
        (14, 1, MAX_EDGE**2 + 1),
    ],
)
def test_a_budget_without_room_for_a_cell_is_refused(multiple, least, most):
    with pytest.raises(ValueError, match="at least one cell must fit"):
        PixelBudget(multiple=multiple, min_pixels=least, max_pixels=most)


@pytest.mark.parametrize(
    ("pre", "edge", "least"),
    [
        (SQUARE, "shortest_edge", 0),
        (SQUARE, "crop_height", 1),
        (SQUARE, "crop_width", 1),
        (EXACT, "height", 1),
        (EXACT, "width", 1),
    ],
)
def test_an_edge_that_no_frame_has_is_refused(pre, edge, least):
    for value in (least, MAX_EDGE):
        assert max(replace(pre, **{edge: value}).max_frame) <= MAX_EDGE
    for value in (least - 1, MAX_EDGE + 1):
        said = rf"{edge} is {value}; it must be from {least} to 32768 pixels"
        with pytest.raises(ValueError, match=said):
            replace(pre, **{edge: value})
        with pytest.raises(ValueError, match=said):
            build(Preprocessing, to_plain(pre) | {edge: value})


def test_the_table_scales_then_subtracts_the_mean_and_divides_by_the_deviation():
    """In the processor's own widths: the product in float64, rounded to float32, the rest in float32."""
    table = normalization_table(SQUARE)
    assert (table.shape, table.dtype) == ((256, 3), np.float32)
    for byte in range(256):
        scaled = np.float32(byte * (1 / 255))
        for channel in range(3):
            mean, std = np.float32(SQUARE.mean[channel]), np.float32(SQUARE.std[channel])
            assert table[byte, channel] == (scaled - mean) / std


@pytest.mark.parametrize("pre", [SQUARE, WHOLE, EXACT, BUDGET], ids=lambda pre: pre.kind)
def test_parameters_come_back_from_their_row_by_their_kind(pre):
    pre = replace(pre, resample=2, mean=(0.5, 0.4, 0.3))
    assert build(Preprocessing, to_plain(pre)) == pre


def test_a_row_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="kind"):
        build(Preprocessing, to_plain(EXACT) | {"kind": "pixel_budget"})


def test_a_frame_has_the_fewer_pixels_the_more_frames_its_video_has():
    """The numbers are qwen-vl-utils', whose limits are those of a video."""
    pre = VideoPixelBudget(
        multiple=28, min_pixels=128 * 784, max_pixels=768 * 784, total_pixels=115_200 * 784
    )
    assert pre.size_in_video(1080, 1920, 2) == (560, 1008)
    assert pre.size_in_video(1080, 1920, 768) == (336, 644)
    assert pre.size_in_video(1080, 1920, 65_536) == (224, 420)
    assert pre.size_in_video(157, 482, 2000) == (196, 560)  # above its share, as there
    frame = np.zeros((1080, 1920, 3), np.uint8)
    assert prepare_frame(frame, pre, 768).shape == (*pre.size_in_video(1080, 1920, 768), 3)
    assert frame_bytes(pre) >= 560 * 1008 * 3
    assert build(VideoPixelBudget, to_plain(pre)) == pre
