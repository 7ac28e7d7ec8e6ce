"""Encoding on a GPU: what is queued, freed and answered when; on a GPU that is there, and on one that is played."""

from __future__ import annotations

import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from geometries import GEOMETRIES
from toys import REPOSITORY

import featstore
from featstore.encoders import LongVAEncoder
from featstore.encoders.registry import EncoderRecipe
from featstore.encoders.toy import ToyEncoder
from featstore.errors import QuantizeError
from featstore.pipeline.encode import cuda_streams
from featstore.pipeline.encode.base import BatchProgress, EncodeResult
from featstore.pipeline.encode.batches import Batches, EncodeTask
from featstore.pipeline.encode.cuda_encoder import CudaEncoder
from featstore.pipeline.ingest import ingest
from featstore.pipeline.options import IngestOptions
from featstore.pipeline.shared_memory import Memory
from featstore.records.budget import ErrorBudget
from featstore.records.quantization import measure_error, quantize
from featstore.records.storage import GRANULARITIES, Storage
from featstore.sampling import Sampling
from featstore.spec import FeatureSpec
from featstore.system.processes import Slots
from featstore.torch import quantize as quantize_tensor
from featstore.torch.kernels.quantize import queue_quantize, read_measures

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_children")]

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
LATE = 3


class Event:
    """Passes when it was asked for often enough."""

    def __init__(self, late: int = LATE) -> None:
        self._asked, self._late = 0, late

    def query(self) -> bool:
        self._asked += 1
        return self.passed

    @property
    def passed(self) -> bool:
        return self._asked > self._late


class PlayedStreams:
    """EncoderStreams without a GPU: everything is done at once, and known to be done later."""

    def __init__(self, encode, device, batch_bytes) -> None:
        self._encode = encode
        self._batch_bytes = batch_bytes
        self._encoding: list[Event] = []

    def encode(self, chunks):
        self._encoding = [event for event in self._encoding if not event.passed]
        assert len(self._encoding) < cuda_streams.DEPTH
        frames = np.concatenate(chunks)
        assert frames.nbytes <= self._batch_bytes
        ended = Event()
        self._encoding.append(ended)
        work = _Work(ended)
        return SimpleNamespace(
            features=torch.from_numpy(self._encode(frames)), read=Event(), work=work
        )

    def store(self, parts, payload, storage):
        features = torch.cat(list(parts))
        stored, scales, measures = queue_quantize(features, storage)
        torch.frombuffer(payload, dtype=stored.dtype).reshape(stored.shape).copy_(stored)
        return cuda_streams.Stored(
            scales,
            measures,
            features.numel(),
            storage,
            arrived=Event(2 * LATE),
            work=_Work(Event()),
        )

    def finish(self) -> None:
        pass


class _Work:
    seconds = 0.001

    def __init__(self, ended: Event) -> None:
        self._ended = ended

    @property
    def done(self) -> bool:
        return self._ended.query()


class PlayedGpu(ToyEncoder):
    """A toy that says it computes on a GPU."""

    device = SimpleNamespace(type="cuda")

    def encode_on_device(self, frames):
        return super().encode(frames)

    def encode(self, frames):
        raise AssertionError("frames come by way of the streams")


@pytest.fixture
def played(monkeypatch):
    monkeypatch.setattr(cuda_streams, "EncoderStreams", PlayedStreams)
    lock = SimpleNamespace(close=lambda: None)
    monkeypatch.setattr("featstore.torch.upload.pinned.PageLock", lambda memory, device: lock)


@pytest.mark.parametrize(
    ("batch", "storage"), [(2, Storage()), (6, Storage("bf16")), (32, Storage())], ids=str
)
def test_a_queue_stores_what_the_host_does(clips, tmp_path, played, batch, storage):
    for i in range(4):
        shutil.copy(clips / "blink.mp4", clips / f"v{i}.mp4")
    kept = {}
    for kind in (ToyEncoder, PlayedGpu):
        encoder = kind()
        encoder.batch_frames = batch
        cache = tmp_path / kind.__name__
        summary = ingest(
            clips,
            cache,
            "demo",
            encoder=encoder,
            sampling=Sampling(6),
            storage=storage,
        )
        assert (summary.stored, summary.failures) == (7, [])
        dataset = featstore.open(cache)["demo"]
        kept[kind] = {name: dataset[name].data.tobytes() for name in dataset}
        assert all(f.header.error.cosine > 0.99 for f in dataset.values())
    assert kept[PlayedGpu] == kept[ToyEncoder]


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_queue_stores_any_geometry(clips, tmp_path, played, name):
    host, queue = GEOMETRIES[name](), GEOMETRIES[name]()
    there = queue.extra_rows
    queue.device = PlayedGpu.device
    queue.encode_on_device = queue.encode
    queue.extra_rows = lambda: torch.from_numpy(there())  # in the memory of the GPU
    kept = []
    for encoder in (host, queue):
        cache = tmp_path / str(len(kept))
        done = ingest(
            clips, cache, "demo", encoder=encoder, sampling=Sampling(21), storage=Storage("fp32")
        )
        assert (done.stored, done.failures) == (3, [])
        dataset = featstore.open(cache)["demo"]
        kept.append({video: (f.header.layout, f.data.tobytes()) for video, f in dataset.items()})
    assert kept[0] == kept[1]


def test_features_that_are_not_finite_are_refused_when_their_measures_arrive(clips, cache, played):
    class Overflowing(PlayedGpu):
        def encode_on_device(self, frames):
            return super().encode_on_device(frames) * np.inf

    summary = ingest(clips, cache, "demo", encoder=Overflowing(), sampling=Sampling(6))
    assert summary.stored == 0
    assert all("NaN or infinite" in failure.reason for failure in summary.failures)
    assert all("computed in fp32" in failure.reason for failure in summary.failures)
    assert len(summary.failures) == 3


def test_a_slot_is_free_when_it_was_read_and_not_before(played):
    toy = PlayedGpu()
    spec = FeatureSpec(toy.identity, Sampling(2), "decord", toy.preprocessing)
    memory = Memory.reserve(spec, Storage(), workers=1, encoders=1, batch_frames=2)
    encoder = CudaEncoder(PlayedGpu(), memory, 2)
    batches = Batches(2)
    batches.add(EncodeTask(7, frames=1, count=2, units=2, size=(28, 28), record=0))
    encoder.submit(batches.take(short=False))
    answers = [encoder.collect() for _ in range(LATE)]
    assert answers == [[]] * LATE
    assert encoder.in_flight == 1
    read, encoded = encoder.collect()
    assert read == BatchProgress((1,), 0.0)
    assert encoded.busy > 0
    assert encoder.in_flight == 0
    assert encoder.owes  # its record is still on its way
    answers = [answer for _ in range(LATE) for answer in encoder.collect()]
    assert [type(answer) for answer in answers] == [EncodeResult]
    assert [answer.video for answer in answers] == [7]
    assert not encoder.owes
    memory.close()


def test_a_video_that_misses_the_budget_comes_again_losslessly(played):
    toy = PlayedGpu()
    spec = FeatureSpec(toy.identity, Sampling(2), "decord", toy.preprocessing)
    options = {"workers": 1, "encoders": 1, "batch_frames": 2, "budget": ErrorBudget(1e-9)}
    memory = Memory.reserve(spec, Storage(), **options)
    frames = memory.frames(1, 0, 2, (28, 28))
    frames[:] = np.random.default_rng(0).integers(0, 256, frames.shape)
    encoder = CudaEncoder(toy, memory, 2)
    batches = Batches(2)
    batches.add(EncodeTask(7, frames=1, count=2, units=2, size=(28, 28), record=0))
    encoder.submit(batches.take(short=False))
    answers = [answer for _ in range(6 * LATE) for answer in encoder.collect()]
    (done,) = [answer for answer in answers if isinstance(answer, EncodeResult)]
    assert (done.storage, done.scales) == (Storage("fp32", codec="planes"), b"")
    assert done.error.token_max == 0
    payload = np.frombuffer(memory.payload(0, 8, done.storage), np.float32).reshape(8, 8)
    np.testing.assert_array_equal(payload, toy.encode_on_device(frames).reshape(8, 8))
    assert not encoder.owes
    del payload, frames
    memory.close()


@needs_gpu
def test_on_a_gpu_too(clips, cache, tiny):
    encoder = EncoderRecipe("longva", {"checkpoint": str(tiny), "device": "cuda:0"}, 8).build()
    words = {"encoder": encoder, "sampling": Sampling(5)}
    exact = ingest(clips, cache, "exact", storage="lossless", **words)
    missed = ingest(clips, cache, "missed", options=IngestOptions(max_error=1e-9), **words)
    assert (missed.stored, missed.lossless) == (exact.stored, exact.stored)
    store = featstore.open(cache)
    for name, features in store["missed"].items():
        assert features.header.storage.values == "fp16"
        np.testing.assert_array_equal(features.data, store["exact"][name].data)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "storage", [*(Storage("int8", name) for name in GRANULARITIES), Storage("fp32")], ids=str
)
def test_a_gpu_quantizes_to_numpys_bits(dtype, storage):
    generator = torch.Generator().manual_seed(0)
    sizes = torch.exp(2 * torch.randn(3584, generator=generator))
    features = (torch.randn((1000, 3584), generator=generator) * sizes).to(dtype)
    features[:, 5] = features[17] = 0
    expected, factors = quantize(features.float().numpy(), storage)
    there = features.cuda()
    stored, found, measures = queue_quantize(there, storage)
    for scale, factor in zip(found, factors, strict=True):
        np.testing.assert_array_equal(scale.cpu().numpy(), factor)
    np.testing.assert_array_equal(stored.cpu().numpy(), expected)
    eager, eager_scales = quantize_tensor(there, storage)
    assert torch.equal(eager, stored)
    assert all(map(torch.equal, eager_scales, found))
    error = read_measures(measures.tolist(), features.numel(), storage)
    reference = measure_error(features.float().numpy(), expected, factors, storage.values)
    assert error.max_abs == reference.max_abs
    for name in ("relative_l2", "token_p99", "token_max"):
        assert getattr(error, name) == pytest.approx(getattr(reference, name), rel=1e-9), name


@needs_gpu
@pytest.mark.parametrize("values", ["bf16", "fp16"])
def test_a_gpu_rounds_floats_as_torch_does_and_counts_what_overflows(values):
    features = torch.randn((300, 700), device="cuda") * 100
    stored, _, measures = queue_quantize(features, Storage(values))
    assert torch.equal(stored, features.to(stored.dtype))
    assert measures[5:7].tolist() == [0, 0]
    features[3, 4] = 3.4e38
    assert queue_quantize(features, Storage(values))[2][5:7].tolist() == [0, 1]


@needs_gpu
def test_a_gpu_counts_what_is_not_finite():
    features = torch.randn((100, 64), device="cuda").half()
    features[3, 4], features[5, 6] = torch.nan, torch.inf
    for granularity in GRANULARITIES:
        storage = Storage("int8", granularity)
        _, _, measures = queue_quantize(features, storage)
        assert measures[5].item() == 2
        with pytest.raises(QuantizeError, match="2 of 6400"):
            quantize_tensor(features, storage)


@needs_gpu
def test_the_kernel_is_used_where_triton_compiles():
    pytest.importorskip("triton")
    from featstore.torch.kernels.dequantize import fused_passes

    assert fused_passes() is not None


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cuda") / "tiny"
    tool = REPOSITORY / "tools" / "make_tiny_checkpoint.py"
    subprocess.run([sys.executable, tool, folder], check=True, capture_output=True)
    return folder


@needs_gpu
@pytest.mark.parametrize("devices", [["cuda:0"], ["cuda:0", "cuda:0"]])
@pytest.mark.parametrize("nframe", [5, 8, 16])
def test_streams_store_what_the_encoder_gives(clips, cache, tiny, devices, nframe):
    for i in range(5):
        shutil.copy(clips / "bouncing_ball.mp4", clips / f"v{i}.mp4")
    recipes = [
        EncoderRecipe("longva", {"checkpoint": str(tiny), "device": d, "dtype": "fp32"}, 8)
        for d in devices
    ]
    encoder = recipes if len(recipes) > 1 else recipes[0].build()
    summary = ingest(
        clips, cache, "demo", encoder=encoder, sampling=Sampling(nframe), storage=Storage("fp32")
    )
    assert summary.stored == 8
    dataset = featstore.open(cache)["demo"]
    same = dataset["bouncing_ball"].data
    for i in range(5):
        np.testing.assert_allclose(dataset[f"v{i}"].data, same, atol=1e-4)


@needs_gpu
def test_frames_on_the_gpu_give_the_features_of_frames_on_the_host(tiny):
    encoder = LongVAEncoder(tiny, device="cuda")
    frames = np.random.default_rng(0).integers(0, 256, (3, 336, 336, 3), np.uint8)
    there = torch.from_numpy(frames).cuda()
    assert torch.equal(encoder.encode(frames), encoder.encode_on_device(there))


@needs_gpu
def test_shared_memory_is_page_locked_and_let_go_of():
    from featstore.torch.upload.pinned import PageLock

    slots = Slots.create(2, 1 << 20)
    for _ in range(2):  # a second time: the first registration is gone
        lock = PageLock(slots.memory, torch.device("cuda:0"))
        assert lock.held
        lock.close()
    slots.close()
