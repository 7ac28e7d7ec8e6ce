"""torch stores the bits that numpy stores, whatever the features are."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quick import examples, first_is_quick
from strategies import LARGEST, feature_arrays
from toys import run_python

from featstore import torch as bridge
from featstore.errors import NotFinite, QuantizeError
from featstore.records import quantization as reference
from featstore.records.storage import GRANULARITIES, Storage
from featstore.torch.kernels import eager
from featstore.torch.kernels import quantize as kernels

STORAGES = [Storage("int8", granularity) for granularity in GRANULARITIES]
STORAGES += [Storage(values) for values in ("bf16", "fp16", "fp32")]
each_storage = pytest.mark.parametrize("storage", STORAGES, ids=str)
each_granularity = pytest.mark.parametrize("granularity", GRANULARITIES)


def normal(rows=150, width=24, seed=0):
    return torch.randn((rows, width), generator=torch.Generator().manual_seed(seed))


def heavy_tailed():
    """A few tokens and a few channels a hundred times larger than the others."""
    x = normal(seed=1)
    x[::40] *= 100
    x[:, ::7] *= 100
    return x * normal(seed=2).exp()


def partly_zero():
    x = normal(seed=3)
    x[17] = x[64] = x[149] = 0
    x[:, 5] = 0
    return x


CASES = {
    "normal": normal(),
    "heavy-tailed": heavy_tailed(),
    "zeros": torch.zeros(70, 5),
    "partly zeros": partly_zero(),
    "tiny": normal(seed=4) * 1e-7,
    "tiny in float32 and bfloat16": normal(seed=5) * 1e-37,
    "denormal in float32": torch.full((3, 4), 1e-45),
    "tiny beside large": normal(seed=6) * torch.logspace(-37, 4, 24),
    "huge in float16": normal(seed=7).clamp(-1, 1) * 65_000,
    "huge": normal(seed=8).clamp(-1, 1) * LARGEST,
    "all the largest": torch.full((3, 4), LARGEST),
    "halfway between two of bfloat16": torch.full((65, 3584), 1.00390625),
    "one row": normal(1, 3584, seed=9),
    "one channel": normal(3000, 1, seed=10),
    "wide": normal(200, 3584, seed=11) * normal(200, 1, seed=12).exp(),
}


def as_numpy(stored):
    return (stored.view(torch.int16) if stored.dtype == torch.bfloat16 else stored).numpy()


def assert_same_bits(x, storage):
    stored, scales = bridge.quantize(x, storage)
    expected, expected_scales = reference.quantize(x.float().numpy(), storage)
    assert len(scales) == len(expected_scales)
    for found, wanted in zip(scales, expected_scales, strict=True):
        np.testing.assert_array_equal(found.numpy(), wanted)
    np.testing.assert_array_equal(as_numpy(stored).view(expected.dtype), expected)


@each_granularity
@pytest.mark.parametrize("dtype", first_is_quick([torch.float32, torch.float16, torch.bfloat16]))
@pytest.mark.parametrize("case", CASES)
def test_int8_has_numpys_bits(case, dtype, granularity):
    x = CASES[case].to(dtype)
    if not bool(x.isfinite().all()):
        pytest.skip("float16 cannot hold such values")
    assert_same_bits(x, Storage("int8", granularity))


@each_granularity
@given(x=feature_arrays())
@settings(deadline=None)
def test_int8_of_any_floats_has_numpys_bits(granularity, x):
    assert_same_bits(torch.from_numpy(x), Storage("int8", granularity))


@each_storage
@given(seed=st.integers(0, 10_000), spread=st.sampled_from([0.0, 1.0, 8.0]))
@examples(25)
def test_torch_quantizes_as_numpy_does_bit_for_bit(storage, seed, spread):
    x = normal(seed=seed) * (normal(1, seed=seed + 1) * spread).exp()
    assert_same_bits(x.clamp(-6e4, 6e4) if storage.values == "fp16" else x, storage)


@pytest.mark.parametrize("case", ["normal", "heavy-tailed", "partly zeros", "zeros", "one channel"])
@each_storage
def test_the_measured_error_is_numpys(storage, case):
    x = CASES[case].clamp(-6e4, 6e4)
    stored, scales = bridge.quantize(x, storage)
    found = bridge.measure_error(x, stored, scales)
    _, _, measures = kernels.queue_quantize(x, storage)
    assert kernels.read_measures(measures.tolist(), x.numel(), storage) == found
    expected = reference.measure_error(
        x.numpy(), *reference.quantize(x.numpy(), storage), storage.values
    )
    assert found.cosine == pytest.approx(expected.cosine, abs=1e-12)
    for name in ("relative_l2", "token_p99", "token_max"):
        there = getattr(expected, name)
        assert getattr(found, name) == pytest.approx(there, rel=1e-9, abs=1e-12), name
    assert found.max_abs == expected.max_abs


def test_a_token_that_is_stored_badly_is_told_apart_from_the_others():
    x = normal(200, 64)
    stored, scales = bridge.quantize(x, Storage("int8", "channel"))
    stored[7] = 0
    error = bridge.measure_error(x, stored, scales)
    assert error.token_max == pytest.approx(1)
    assert error.token_p99 < 0.02 < error.relative_l2


@each_storage
def test_blocks_are_restored_to_numpys_bits(storage):
    """This is how a GPU dequantizes if no kernel does."""
    x = heavy_tailed()
    stored, scales = bridge.quantize(x, storage)
    expected = reference.dequantize(*reference.quantize(x.numpy(), storage), storage.values)
    for rows in (slice(0, 64), slice(64, 150), slice(3, 4)):
        found = eager.restore(stored, scales, rows)
        np.testing.assert_array_equal(found.numpy(), expected[rows])


@pytest.mark.parametrize("granularity", ["channel_token", "token"])
def test_features_without_rows_have_no_scale_that_is_too_large(granularity):
    assert_same_bits(torch.zeros(0, 4), Storage("int8", granularity))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@each_storage
def test_values_that_are_not_finite_are_refused(bad, storage):
    x = torch.zeros(70, 4)
    x[69, 3] = bad
    with pytest.raises(NotFinite, match="1 of 280"):
        bridge.quantize(x, storage)
    _, _, measures = kernels.queue_quantize(x, storage)
    with pytest.raises(NotFinite, match="1 of 280"):
        kernels.read_measures(measures.tolist(), x.numel(), storage)


@pytest.mark.parametrize(("values", "value"), [("fp16", 1e5), ("bf16", 3.4e38)])
def test_a_value_too_large_is_refused_in_the_same_words(values, value):
    said = set()
    for x, quantize in (
        (torch.full((2, 2), value), bridge.quantize),
        (np.full((2, 2), value, np.float32), reference.quantize),
    ):
        with pytest.raises(QuantizeError, match=rf"4 of 4 values exceed {values}'s") as caught:
            quantize(x, Storage(values))
        said.add(str(caught.value))
    assert len(said) == 1


INTERPRETED = """
import numpy as np
import torch
from featstore.records import quantization as reference
from featstore.records.storage import GRANULARITIES, Storage
from featstore.torch.kernels import fused, quantize
from test_quantize import CASES, as_numpy
quantize._passes_for = lambda features: fused
cases = {
    "heavy-tailed": torch.float32, "partly zeros": torch.float16, "one channel": torch.float32, "wide": torch.float16
}
for name, dtype in cases.items():
    x = CASES[name][:20, :600].to(dtype).contiguous()
    x[7] = 0
    for storage in [*(Storage("int8", granularity) for granularity in GRANULARITIES), Storage("fp32")]:
        stored, scales, measures = quantize.queue_quantize(x, storage)
        expected, factors = reference.quantize(x.float().numpy(), storage)
        np.testing.assert_array_equal(as_numpy(stored).view(expected.dtype), expected)
        for scale, factor in zip(scales, factors, strict=True):
            np.testing.assert_array_equal(scale.numpy(), factor)
        found = quantize.read_measures(measures.tolist(), x.numel(), storage)
        wanted = reference.measure_error(x.float().numpy(), expected, factors, storage.values)
        for name, value in vars(wanted).items():
            assert abs(getattr(found, name) - value) <= 1e-9 * abs(value), (storage, name, found, wanted)
        if scales:
            out = torch.empty(x.shape)
            fused.dequantize(out, stored, scales)
            np.testing.assert_array_equal(out.numpy(), reference.dequantize(expected, factors, "int8"))
x = torch.ones(7, 600)
x[3, 4], x[6, 599] = torch.nan, -torch.inf
np.seterr(all="ignore")
for storage in (Storage("int8", "channel_token"), Storage("int8", "channel"), Storage("fp16")):
    assert quantize.queue_quantize(x, storage)[2][5] == 2
assert quantize.queue_quantize(torch.full((2, 3), 1e5), Storage("fp16"))[2][5:7].tolist() == [0, 6]
"""


@pytest.mark.slow
def test_the_fused_kernels_have_numpys_bits_also_where_they_are_interpreted(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    done = run_python(INTERPRETED)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_quantizing_leaves_the_features_as_they_are(granularity):
    features = torch.randn(70, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = features.clone()
    stored, scales = bridge.quantize(features, Storage("int8", granularity))
    bridge.measure_error(features, stored, scales)
    assert torch.equal(features, before)
