"""What needs a GPU: every way to it gives the same bits."""

import dataclasses
import mmap

import numpy as np
import pytest
import torch
from toys import store_videos, toy_features, toy_spec

import featstore
from featstore.encoders.toy import ToyEncoder
from featstore.errors import RecordError
from featstore.records.features import Features
from featstore.records.record import Record
from featstore.records.storage import GRANULARITIES, Storage
from featstore.system.file_map import shows_pages
from featstore.torch import FeatureDataset, explain, prefetch, to_tensor
from featstore.torch.upload import cudart, registered
from featstore.torch.upload.staged import SLOT_BYTES, SLOTS, shared_ring

INT8_CODECS = ("raw", "lz4", "zstd")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


def shrinking_features(seed, frames):
    """Features of which some tokens are small: what is quantized by one scale for all shrinks."""
    x = toy_features(seed, frames=frames)
    x[::3] *= 1e-3
    return x


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    cache = tmp_path_factory.mktemp("gpu") / "cache"
    videos = {f"v{i}": shrinking_features(i, frames=30_000 + i) for i in range(3)}
    spec = toy_spec(40_000)
    for granularity in GRANULARITIES:
        for codec in INT8_CODECS:
            storage = Storage("int8", granularity, codec)
            store_videos(cache, f"{granularity}-{codec}", videos, spec=spec, storage=storage)
    store_videos(cache, "bf16", videos, spec=spec, storage=Storage("bf16"))
    return featstore.open(cache)


@pytest.mark.parametrize("way", ["auto", "registered", "staged", "pageable"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_way_gives_the_cpus_bits(store, way, dtype):
    for name in store:
        for features in store[name].values():
            expected = to_tensor(features, dtype=dtype)
            for _ in range(3):  # auto registers what is asked for again
                found = to_tensor(features, device="cuda", dtype=dtype, way=way)
                assert torch.equal(found.cpu(), expected), (name, way)


def test_a_copy_crosses_no_edge_of_what_is_registered(tmp_path):
    """CUDA calls it an invalid argument; records that were replaced leave such edges."""
    store_videos(tmp_path, "d", {"v": toy_features(0, frames=30_000)}, spec=toy_spec(40_000))
    features = featstore.open(tmp_path)["d"]["v"]
    expected = to_tensor(features)
    address = features.data.ctypes.data
    for way in ("pageable", "registered", "pageable", "staged"):
        found = registered.register_record(
            features.owner, address + (300 << 10), 1 << 17, at_once=True
        )
        assert found
        assert torch.equal(to_tensor(features, device="cuda", way=way).cpu(), expected), way


def test_the_callers_stream_may_be_any(store):
    features = store["channel-raw"]["v0"]
    expected = to_tensor(features)
    stream = torch.cuda.Stream()
    for way in ("registered", "staged", "pageable"):
        with torch.cuda.stream(stream):
            found = to_tensor(features, device="cuda", way=way).cpu()
        assert torch.equal(found, expected), way


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
@pytest.mark.parametrize("way", ["registered", "staged", "pageable"])
def test_a_tensor_is_not_filled_anew_before_the_one_before_is_made(store, device, way):
    """The values of both cross through the same memory, and the GPU is far behind the host."""
    videos = [store["channel-raw"][name] for name in ("v0", "v1", "v2")]
    expected = [to_tensor(features) for features in videos]
    for _ in range(2):  # the second time memory is there to be used again
        torch.cuda.synchronize()
        torch.cuda._sleep(200_000_000)
        found = [to_tensor(features, device=device, way=way) for features in videos]
        assert all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))


def test_a_record_is_registered_when_it_is_asked_for_again(tmp_path):
    videos = {"v": toy_features(0, frames=30_000)}
    store_videos(tmp_path / "cache", "d", videos, spec=toy_spec(40_000))
    features = featstore.open(tmp_path / "cache")["d"]["v"]
    assert explain(features).startswith("staged")
    if not shows_pages(features.owner.address):
        pytest.skip("this system does not tell what lies in memory")
    to_tensor(features, device="cuda")
    assert explain(features).startswith("registered")
    to_tensor(features, device="cuda")
    assert explain(features).startswith("registered")


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_what_is_compressed_is_decompressed_on_the_cpu(store, codec):
    features = store[f"tensor-{codec}"]["v1"]
    assert features.header.storage.codec == codec
    assert explain(features) == f"staged: {codec} is decompressed on the CPU"


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_a_claim_about_a_huge_payload_takes_no_memory_on_the_gpu(store, codec):
    features = store[f"tensor-{codec}"]["v1"]
    header = dataclasses.replace(features.header, shape=(1 << 30, 2))
    payload = features._record.payload
    record = Record(header, features._record.scales, payload)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with pytest.raises(RecordError, match=r"needs|expand|speaks"):
        to_tensor(Features(header, record), device="cuda")
    assert torch.cuda.max_memory_allocated() == before


def test_a_refused_registration_leaves_cuda_usable():
    values, owner = np.zeros(1 << 20, np.uint8), ToyEncoder()
    start = values.ctypes.data - values.ctypes.data % mmap.PAGESIZE
    assert cudart.register(start, 1 << 20) == 0  # by somebody else
    assert not registered.register_record(owner, values.ctypes.data, 1 << 19, at_once=True)
    assert "CUDA refused" in registered.why_not_registered(owner, values.ctypes.data, 1 << 19)
    assert torch.ones(3, device="cuda").sum().item() == 3
    cudart.unregister(start)
    cudart.unregister(start)  # and it was not let go of before
    assert torch.ones(3, device="cuda").sum().item() == 3


def test_prefetched_tensors_come_in_order_and_whole(store):
    for codec in INT8_CODECS:
        dataset = store[f"channel-{codec}"]
        names = [*dataset] * 5
        for name, tensor in prefetch(dataset, names, device="cuda"):
            assert torch.equal(tensor.cpu(), to_tensor(dataset[name])), name
    found = FeatureDataset(store.cache_dir, "channel-raw")
    order = [name for name, _ in found.batches(device="cuda")]
    assert order == sorted(store["channel-raw"])


def test_uploads_larger_than_the_ring_arrive_whole():
    size = SLOTS * SLOT_BYTES + 20_000_001
    values = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    out = torch.empty(len(values), dtype=torch.uint8, device="cuda")
    for _ in range(3):
        out.zero_()
        torch.cuda.synchronize()
        for _, event in shared_ring().upload(values, out):
            last = event
        last.synchronize()
        assert torch.equal(out.cpu(), torch.from_numpy(values))
