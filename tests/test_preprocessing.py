import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from featstore.fields import build, to_plain
from featstore.preprocessing import Preprocessing, normalization_table, resize_and_crop

SQUARE = Preprocessing(24, 24, 24)


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
    assert np.array_equal(resize_and_crop(frame, SQUARE), cropped)


@pytest.mark.parametrize("resample", list(Image.Resampling))
def test_the_filter_is_pillows_of_that_number(resample):
    frame = picture(30, 30)
    pre = Preprocessing(24, 24, 24, resample=int(resample))
    there = np.asarray(Image.fromarray(frame).resize((24, 24), resample))
    assert np.array_equal(resize_and_crop(frame, pre), there)


def test_without_a_shortest_edge_the_frame_is_only_cropped():
    frame = picture(31, 29)
    pre = Preprocessing(0, 24, 20)
    assert np.array_equal(resize_and_crop(frame, pre), frame[2:26, 5:25])


@given(st.integers(1, 90), st.integers(1, 90))
def test_every_frame_comes_out_in_the_promised_shape(width, height):
    out = resize_and_crop(picture(width, height), SQUARE)
    assert (out.shape, out.dtype) == (SQUARE.frame_shape, np.uint8)


def test_a_frame_smaller_than_the_crop_is_refused():
    with pytest.raises(ValueError, match="20 x 30 pixels cannot be cropped to 24 x 24"):
        resize_and_crop(picture(20, 30), Preprocessing(0, 24, 24))


def test_the_table_scales_then_subtracts_the_mean_and_divides_by_the_deviation():
    """In the processor's own widths: the product in float64, rounded to float32, the rest in float32."""
    table = normalization_table(SQUARE)
    assert (table.shape, table.dtype) == ((256, 3), np.float32)
    for byte in range(256):
        scaled = np.float32(byte * (1 / 255))
        for channel in range(3):
            mean, std = np.float32(SQUARE.mean[channel]), np.float32(SQUARE.std[channel])
            assert table[byte, channel] == (scaled - mean) / std


def test_parameters_come_back_from_their_row():
    pre = Preprocessing(336, 336, 224, resample=2, mean=(0.5, 0.4, 0.3))
    assert build(Preprocessing, to_plain(pre)) == pre
