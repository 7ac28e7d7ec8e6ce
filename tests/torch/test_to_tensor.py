import os
import signal
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featstore import torch as bridge
from featstore.errors import QuantizeError
from featstore.records import quantization as reference
from featstore.records.features import Features
from featstore.records.header import Header, SourceFingerprint
from featstore.records.quantization import QuantError
from featstore.records.record import Record

KINDS = [
    ("int8", "channel"),
    ("int8", "token"),
    ("int8", "tensor"),
    ("bf16", "none"),
    ("fp16", "none"),
    ("fp32", "none"),
]


def draw(seed: int, rows: int = 150, dim: int = 24, spread: float = 3.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(rows, dim)) * np.exp(rng.normal(size=dim) * spread)).astype(np.float32)


def features_of(x: np.ndarray, quantization: str, granularity: str) -> Features:
    stored, scale = reference.quantize(x, quantization, granularity)
    header = Header(
        video_id="v",
        video_path="p",
        dataset="d",
        nframe=len(x),
        frame_indices=b"\0" * 4 * len(x),
        total_frames=1,
        fps=1.0,
        shape=x.shape,
        tokens_per_frame=1,
        quantization=quantization,
        scale=granularity,
        dtype="fp32",
        model_signature="",
        spec="",
        source=SourceFingerprint(0, 0, ""),
        error=QuantError(1.0, 0.0, 0.0),
        created=0.0,
    )
    payload = memoryview(stored.tobytes())  # read-only, as the map is
    return Features(header, Record(header, memoryview(scale.tobytes()), payload))


def as_numpy(stored: torch.Tensor) -> np.ndarray:
    return (stored.view(torch.int16) if stored.dtype == torch.bfloat16 else stored).numpy()


@pytest.mark.parametrize(("quantization", "granularity"), KINDS)
@given(seed=st.integers(0, 10_000), spread=st.sampled_from([0.0, 1.0, 8.0]))
@settings(max_examples=25, deadline=None)
def test_torch_quantizes_as_numpy_does_bit_for_bit(quantization, granularity, seed, spread):
    x = draw(seed, spread=spread)
    if quantization == "fp16":
        x = x.clip(-6e4, 6e4)
    stored, scale = bridge.quantize(torch.from_numpy(x), quantization, granularity)
    expected, expected_scale = reference.quantize(x, quantization, granularity)
    np.testing.assert_array_equal(as_numpy(stored).view(expected.dtype), expected)
    np.testing.assert_array_equal(scale.numpy(), expected_scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_quantizes_as_its_float32_values(dtype):
    x = torch.from_numpy(draw(1, spread=1.0)).to(dtype)
    stored, scale = bridge.quantize(x, "int8", "channel")
    expected, expected_scale = reference.quantize(x.float().numpy(), "int8", "channel")
    np.testing.assert_array_equal(stored.numpy(), expected)
    np.testing.assert_array_equal(scale.numpy(), expected_scale)


@pytest.mark.parametrize(("quantization", "granularity"), KINDS)
def test_the_measured_error_is_numpys(quantization, granularity):
    x = draw(2, spread=1.0)
    stored, scale = bridge.quantize(torch.from_numpy(x), quantization, granularity)
    found = bridge.measure_error(torch.from_numpy(x), stored, scale)
    expected = reference.measure_error(
        x, *reference.quantize(x, quantization, granularity), quantization
    )
    assert found.cosine == pytest.approx(expected.cosine, abs=1e-12)
    assert found.relative_l2 == pytest.approx(expected.relative_l2, rel=1e-9, abs=1e-12)
    assert found.max_abs == expected.max_abs


@pytest.mark.parametrize(("quantization", "granularity"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_tensor_holds_the_dequantized_values_rounded_once(quantization, granularity, dtype):
    features = features_of(draw(3, spread=1.0), quantization, granularity)
    expected = torch.from_numpy(features.dequantize()).to(dtype)
    assert torch.equal(bridge.to_tensor(features, dtype=dtype), expected)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("granularity", ["channel", "token", "tensor"])
@pytest.mark.parametrize("shape", [(40_001, 40), (1, 2_000_000), (1_600_000, 1), (5, 400_000)])
def test_several_threads_give_what_numpy_gives(granularity, shape, three_threads):
    """Blocks that come out even and not, of rows longer than a block."""
    features = features_of(draw(6, *shape, spread=1.0), "int8", granularity)
    expected = torch.from_numpy(features.dequantize())
    assert torch.equal(bridge.to_tensor(features, dtype=torch.float32), expected)
    assert torch.equal(bridge.to_tensor(features), expected.bfloat16())


def test_other_threads_have_as_many_of_torch_s_as_before(three_threads):
    bridge.to_tensor(features_of(draw(9, 40_000, 40), "int8", "channel"))
    with ThreadPoolExecutor(1) as fresh:
        assert (torch.get_num_threads(), fresh.submit(torch.get_num_threads).result()) == (3, 3)


def test_a_tensor_may_be_made_in_inference_mode(three_threads):
    features = features_of(draw(7, 40_000, 40), "int8", "channel")
    with torch.inference_mode():
        found = bridge.to_tensor(features, dtype=torch.float32)
        assert torch.equal(found, torch.from_numpy(features.dequantize()))


def test_a_forked_child_dequantizes_too(three_threads):
    """Threads do not survive a fork: the child starts its own."""
    features = features_of(draw(8, 40_000, 40), "int8", "channel")
    expected = features.dequantize()
    bridge.to_tensor(features, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forking with threads
        child = os.fork()
    if child == 0:
        signal.alarm(30)
        found = bridge.to_tensor(features, dtype=torch.float32).numpy()
        os._exit(0 if np.array_equal(found, expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_out_is_filled_and_returned():
    features = features_of(draw(4), "int8", "channel")
    out = torch.empty(features.shape)
    assert bridge.to_tensor(features, out=out) is out
    np.testing.assert_array_equal(out.numpy(), features.dequantize())
    with pytest.raises(ValueError, match="out has shape"):
        bridge.to_tensor(features, out=torch.empty(3, 3))


@pytest.mark.parametrize(("quantization", "granularity"), KINDS)
def test_no_tensor_aliases_the_stored_bytes(quantization, granularity):
    features = features_of(draw(5, spread=1.0), quantization, granularity)
    before = features.data.copy()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        bridge.to_tensor(features, dtype=dtype).fill_(7)
    np.testing.assert_array_equal(features.data, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("quantization", "granularity"), KINDS)
def test_values_that_are_not_finite_are_refused(bad, quantization, granularity):
    x = torch.zeros(70, 4)
    x[69, 3] = bad
    with pytest.raises(QuantizeError, match="1 of 280"):
        bridge.quantize(x, quantization, granularity)


def test_a_value_too_large_for_fp16_is_refused():
    with pytest.raises(QuantizeError, match="exceed"):
        bridge.quantize(torch.full((2, 2), 1e5), "fp16", "none")
