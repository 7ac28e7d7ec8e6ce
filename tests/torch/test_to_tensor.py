import os
import re
import signal
import warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from quick import first_is_quick

from featstore import torch as bridge
from featstore.errors import FeatstoreError
from featstore.geometry import RowLayout
from featstore.records import quantization as reference
from featstore.records.features import Features
from featstore.records.header import Header, SourceFingerprint
from featstore.records.quantization import QuantError
from featstore.records.record import Record
from featstore.records.storage import GRANULARITIES, Storage
from featstore.torch.upload.cudart import refuse_missing

INT8 = Storage("int8", "channel")
STORAGES = [Storage("int8", granularity) for granularity in GRANULARITIES]
STORAGES += [Storage(values) for values in ("bf16", "fp16", "fp32")]
each_storage = pytest.mark.parametrize("storage", STORAGES, ids=str)


def draw(seed: int, rows: int = 150, dim: int = 24, spread: float = 3.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(rows, dim)) * np.exp(rng.normal(size=dim) * spread)).astype(np.float32)


def features_of(x: np.ndarray, storage: Storage) -> Features:
    stored, scales = reference.quantize(x, storage)
    header = Header(
        video_id="v",
        video_path="p",
        dataset="d",
        spec="",
        nframe=len(x),
        frame_indices=b"\0" * 4 * len(x),
        total_frames=1,
        fps=1.0,
        decoder="pyav",
        doubt="",
        shape=x.shape,
        layout=RowLayout(units=1, tokens_per_unit=len(x)),
        dtype="fp32",
        storage=storage,
        source=SourceFingerprint(0, 0, ""),
        error=QuantError(1.0, 0.0, 0.0, 0.0, 0.0),
        created=0.0,
    )
    payload = memoryview(stored.tobytes())  # read-only, as the map is
    joined = b"".join(scale.tobytes() for scale in scales)
    return Features(header, Record(header, memoryview(joined), payload))


@each_storage
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_tensor_holds_the_dequantized_values_rounded_once(storage, dtype):
    features = features_of(draw(3, spread=1.0), storage)
    expected = torch.from_numpy(features.dequantize()).to(dtype)
    assert torch.equal(bridge.to_tensor(features, dtype=dtype), expected)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(
    "shape", first_is_quick([(40_001, 40), (1, 2_000_000), (1_600_000, 1), (5, 400_000)])
)
def test_several_threads_give_what_numpy_gives(granularity, shape, three_threads):
    """Blocks that come out even and not, of rows longer than a block."""
    features = features_of(draw(6, *shape, spread=1.0), Storage("int8", granularity))
    expected = torch.from_numpy(features.dequantize())
    assert torch.equal(bridge.to_tensor(features, dtype=torch.float32), expected)
    assert torch.equal(bridge.to_tensor(features), expected.bfloat16())


def test_other_threads_have_as_many_of_torch_s_as_before(three_threads):
    bridge.to_tensor(features_of(draw(9, 40_000, 40), INT8))
    with ThreadPoolExecutor(1) as fresh:
        assert (torch.get_num_threads(), fresh.submit(torch.get_num_threads).result()) == (3, 3)


def test_a_tensor_may_be_made_in_inference_mode(three_threads):
    features = features_of(draw(7, 40_000, 40), INT8)
    with torch.inference_mode():
        found = bridge.to_tensor(features, dtype=torch.float32)
        assert torch.equal(found, torch.from_numpy(features.dequantize()))


def test_a_forked_child_dequantizes_too(three_threads):
    """Threads do not survive a fork: the child starts its own."""
    features = features_of(draw(8, 40_000, 40), INT8)
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
    features = features_of(draw(4), INT8)
    out = torch.empty(features.shape)
    assert bridge.to_tensor(features, out=out) is out
    np.testing.assert_array_equal(out.numpy(), features.dequantize())
    with pytest.raises(ValueError, match="out has shape"):
        bridge.to_tensor(features, out=torch.empty(3, 3))


def test_a_dtype_that_cannot_hold_features_is_refused_in_words():
    features = features_of(draw(4), INT8)
    with pytest.raises(TypeError, match=r"dtype is 'bf16'; pass a torch\.dtype, such as"):
        bridge.to_tensor(features, dtype="bf16")
    with pytest.raises(ValueError, match=r"torch\.int8 would cut them; use a floating-point"):
        bridge.to_tensor(features, dtype=torch.int8)
    with pytest.raises(ValueError, match="would cut them"):
        bridge.to_tensor(features, out=torch.empty(features.shape, dtype=torch.int32))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_refused_and_not_promised(device):
    features = features_of(draw(4), INT8)
    source = SimpleNamespace(lookup=lambda video: features, read_ahead=lambda video: None)
    found = rf"device is '{device}', but torch \S+ sees no GPU"
    for use in (
        lambda: bridge.to_tensor(features, device=device),
        lambda: list(bridge.prefetch(source, ["v"], device=device)),
    ):
        with pytest.raises(FeatstoreError, match=found + '; use device="cpu" .*--device cpu'):
            use()
    assert re.fullmatch(f"not at all: {found}", bridge.explain(features, device))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_no_gpu_is_reached_through_the_cpu(device):
    assert bridge.explain(features_of(draw(4), INT8), device).startswith("cpu: read in place")


@pytest.mark.parametrize("device", ["foo", "xla", "hpu", "vulkan"])
def test_a_device_of_another_kind_is_refused_in_words(device):
    features = features_of(draw(4), INT8)
    source = SimpleNamespace(lookup=lambda video: features, read_ahead=lambda video: None)
    for use in (
        lambda: bridge.to_tensor(features, device=device),
        lambda: list(bridge.prefetch(source, ["v"], device=device)),
    ):
        with pytest.raises(FeatstoreError, match=f"device is '{device}', .*; use cpu, cuda or"):
            use()


def test_a_tensor_that_overlaps_itself_is_not_filled():
    features = features_of(draw(4), INT8)
    rows, width = features.shape
    room = torch.empty(2 * rows * width)
    for strides in ((0, 1), (1, 1), (width - 1, 1), (1, 0)):
        with pytest.raises(ValueError, match="several of its elements are one"):
            bridge.to_tensor(features, out=room.as_strided((rows, width), strides))
    expected = bridge.to_tensor(features, dtype=torch.float32)
    for strides in ((width, 1), (1, rows), (2 * width, 2), (width + 3, 1)):
        out = room.as_strided((rows, width), strides)
        assert bridge.to_tensor(features, out=out).equal(expected)


def test_a_gpu_beyond_the_last_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    refuse_missing(torch.device("cuda:0"))
    with pytest.raises(
        FeatstoreError, match="device is 'cuda:1', but the GPUs here are 1, the first"
    ):
        refuse_missing(torch.device("cuda:1"))


@each_storage
def test_no_tensor_aliases_the_stored_bytes(storage):
    features = features_of(draw(5, spread=1.0), storage)
    before = features.data.copy()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        bridge.to_tensor(features, dtype=dtype).fill_(7)
    np.testing.assert_array_equal(features.data, before)


def test_features_are_not_cut_to_integers():
    features = features_of(draw(3, spread=1.0), Storage())
    for wrong in ({"dtype": torch.int32}, {"out": torch.zeros(features.shape, dtype=torch.int32)}):
        with pytest.raises(ValueError, match="use a floating-point dtype"):
            bridge.to_tensor(features, **wrong)
