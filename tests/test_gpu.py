"""What needs a GPU: every way to it gives the same bits."""

import numpy as np
import pytest
import torch
from toys import store_videos, toy_features, toy_spec

import featstore
from featstore.encoders import ToyEncoder
from featstore.torch import FeatureDataset, explain, prefetch, to_tensor
from featstore.torch.registered import registered_spans
from featstore.torch.staged import shared_ring

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    cache = tmp_path_factory.mktemp("gpu") / "cache"
    videos = {f"v{i}": toy_features(i, frames=2000 + i) for i in range(3)}
    for scale in ("channel", "token", "tensor"):
        for codec in ("raw", "lz4"):
            spec = toy_spec(3000, scale=scale)
            store_videos(cache, f"{scale}-{codec}", videos, spec=spec, codec=codec)
    store_videos(cache, "bf16", videos, spec=toy_spec(3000, "bf16"))
    return featstore.open(cache)


@pytest.mark.parametrize("way", ["auto", "registered", "staged", "pageable"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_way_gives_the_cpus_bits(store, way, dtype):
    for name in store:
        for features in store[name].values():
            expected = to_tensor(features, dtype=dtype)
            found = to_tensor(features, device="cuda", dtype=dtype, way=way)
            assert torch.equal(found.cpu(), expected), (name, way)


def test_a_map_is_registered_and_a_decompressed_record_staged(store):
    assert explain(store["channel-raw"]["v1"]).startswith("registered")
    features = store["channel-lz4"]["v1"]
    if features.header.codec == "lz4":
        assert explain(features).startswith("staged")


def test_a_refused_registration_leaves_cuda_usable(store):
    values = np.zeros(100, np.uint8)
    owner = ToyEncoder()
    assert registered_spans(owner, values.ctypes.data, 100) == []
    assert torch.ones(3, device="cuda").sum().item() == 3


def test_prefetched_tensors_come_in_order_and_whole(store):
    dataset = store["channel-raw"]
    names = [*dataset] * 5
    for name, tensor in prefetch(dataset, names, device="cuda"):
        assert torch.equal(tensor.cpu(), to_tensor(dataset[name])), name
    found = FeatureDataset(store.cache_dir, "channel-raw")
    order = [name for name, _ in found.batches(device="cuda")]
    assert order == sorted(dataset)


def test_uploads_larger_than_the_ring_arrive_whole():
    values = np.random.default_rng(0).integers(0, 256, 150_000_001, dtype=np.uint8)
    out = torch.empty(len(values), dtype=torch.uint8, device="cuda")
    for _ in range(3):
        out.zero_()
        shared_ring().upload(values, out)
        assert torch.equal(out.cpu(), torch.from_numpy(values))
