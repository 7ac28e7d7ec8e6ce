import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import LARGEST, feature_arrays, int8_granularities, storages

from featstore.errors import QuantizeError
from featstore.records.quantization import (
    MIN_SCALE,
    QuantError,
    dequantize,
    measure_error,
    quantize,
)
from featstore.records.sizes import scale_shape
from featstore.spec import STORED_DTYPES

ZEROS = np.zeros((3, 2), np.float32)
DENORMALS = np.array([[1e-45, -1e-40], [1e-39, 1e-45]], np.float32)
LARGE = np.array([[LARGEST, -LARGEST], [1.0, -1e-30]], np.float32)


@given(feature_arrays(), int8_granularities)
@example(ZEROS, "channel")
@example(DENORMALS, "channel")
@example(LARGE, "tensor")
def test_int8_is_at_most_half_a_scale_step_off(x, granularity):
    stored, scale = quantize(x, "int8", granularity)
    back = dequantize(stored, scale, "int8").astype(np.float64)
    # Beyond the half step only the rounding of float32 itself: of the ratio, and of the product.
    slack = 2 * np.finfo(np.float32).eps * np.abs(x.astype(np.float64))
    assert (np.abs(back - x) <= scale.astype(np.float64) / 2 + slack).all()
    assert np.abs(stored.astype(int)).max() <= 127


@given(feature_arrays(), storages)
def test_what_is_stored_has_the_promised_shapes_and_types(x, storage):
    quantization, granularity = storage
    if quantization == "fp16":
        x = np.clip(x, -65_504, 65_504)
    stored, scale = quantize(x, quantization, granularity)
    assert (stored.dtype, stored.shape) == (np.dtype(STORED_DTYPES[quantization]), x.shape)
    assert (scale.dtype, scale.shape) == (np.float32, scale_shape(granularity, *x.shape))
    assert (scale >= MIN_SCALE).all()


@pytest.mark.parametrize("granularity", ["channel", "token", "tensor"])
def test_zeros_stay_zeros(granularity):
    stored, scale = quantize(ZEROS, "int8", granularity)
    assert not dequantize(stored, scale, "int8").any()


def test_each_channel_and_each_token_has_its_own_scale():
    x = np.array([[127.0, 1.27], [-12.7, 0.0]], np.float32)
    assert np.allclose(quantize(x, "int8", "channel")[1], [[1.0, 0.01]])
    assert np.allclose(quantize(x, "int8", "token")[1], [[1.0], [0.1]])
    assert np.allclose(quantize(x, "int8", "tensor")[1], [[1.0]])
    assert quantize(x, "int8", "token")[0].tolist() == [[127, 1], [-127, 0]]


def test_a_tie_rounds_to_even():
    x = np.array([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]], np.float32)
    assert quantize(x, "int8", "tensor")[0].tolist() == [[127, 0, 2, 2, 0, -2]]


@given(feature_arrays(), storages, st.sampled_from([np.nan, np.inf, -np.inf]), st.data())
def test_a_value_that_is_not_finite_is_refused_and_counted(x, storage, value, data):
    row, column = (data.draw(st.integers(0, size - 1)) for size in x.shape)
    x[row, column] = value
    with pytest.raises(QuantizeError, match=f"1 of {x.size} feature values are NaN or infinite"):
        quantize(x, *storage)


@given(storages)
def test_a_float64_beyond_float32_is_refused_too(storage):
    with pytest.raises(QuantizeError, match="1 of 2 feature values"):
        quantize(np.array([[1e300, 1.0]]), *storage)


def test_fp16_refuses_what_overflows_it():
    assert quantize(np.array([[65_504.0]]), "fp16", "none")[0][0, 0] == 65_504
    with pytest.raises(QuantizeError, match="1 of 2 values exceed fp16's 65504"):
        quantize(np.array([[65_520.0, 1.0]]), "fp16", "none")


def bf16_reference(value: np.float32) -> int:
    """The bits of the bf16 nearest to `value`, ties to even, by comparing both neighbours exactly."""
    low = int(value.view(np.uint32)) >> 16
    neighbours = [np.uint32(bits << 16).view(np.float32) for bits in (low, low + 1)]
    gaps = [abs(float(value) - float(there)) for there in neighbours]
    if gaps[0] == gaps[1]:
        return low + (low & 1)
    return low + int(gaps[1] < gaps[0])


@given(st.floats(-LARGEST, LARGEST, width=32))
@example(1.00390625)  # halfway, down to even
@example(1.01171875)  # halfway, up to even
@example(1e-45)
@example(-0.0)
def test_bf16_rounds_to_the_nearest_and_ties_to_even(value):
    x = np.array([[value]], np.float32)
    stored, scale = quantize(x, "bf16", "none")
    assert stored[0, 0] == bf16_reference(x[0, 0])
    assert dequantize(stored, scale, "bf16").view(np.uint32)[0, 0] == int(stored[0, 0]) << 16


def test_bf16_refuses_what_rounds_to_infinity():
    with pytest.raises(QuantizeError, match="rounds beyond bf16's largest"):
        quantize(np.array([[np.finfo(np.float32).max]]), "bf16", "none")


@given(feature_arrays())
def test_fp32_is_stored_as_it_is(x):
    stored, scale = quantize(x, "fp32", "none")
    assert np.array_equal(dequantize(stored, scale, "fp32"), x)


@given(feature_arrays(60_000), storages)
def test_dequantize_fills_the_array_it_is_given(x, storage):
    stored, scale = quantize(x, *storage)
    out = np.full(x.shape, np.nan, np.float32)
    assert dequantize(stored, scale, storage[0], out=out) is out
    assert np.array_equal(out, dequantize(stored, scale, storage[0]))


@pytest.mark.parametrize(
    "out", [np.empty((4, 2), np.float32), np.empty((3, 2)), np.empty(6, np.float32)]
)
def test_dequantize_refuses_an_array_that_does_not_fit(out):
    with pytest.raises(ValueError, match="out is float"):
        dequantize(*quantize(ZEROS, "int8", "channel"), "int8", out=out)


@given(feature_arrays(1e6), int8_granularities)
def test_the_measured_error_is_the_real_one(x, granularity):
    stored, scale = quantize(x, "int8", granularity)
    measured = measure_error(x, stored, scale, "int8")
    before, after = x.astype(np.float64), dequantize(stored, scale, "int8").astype(np.float64)
    norms = np.linalg.norm(before) * np.linalg.norm(after)
    assert measured.max_abs == np.abs(before - after).max()
    if norms:
        gap = np.linalg.norm(before - after)
        assert measured.cosine == pytest.approx((before * after).sum() / norms)
        assert measured.relative_l2 == pytest.approx(gap / np.linalg.norm(before))


def test_two_tensors_of_zeros_are_equal_and_one_is_lost():
    zeros = QuantError.from_sums(dot=0.0, original=0.0, stored=0.0, difference=0.0, max_abs=0.0)
    lost = QuantError.from_sums(dot=0.0, original=4.0, stored=0.0, difference=4.0, max_abs=2.0)
    assert zeros == QuantError(cosine=1.0, relative_l2=0.0, max_abs=0.0)
    assert lost == QuantError(cosine=0.0, relative_l2=1.0, max_abs=2.0)
