"""How bytes are cut, staged and put together on their way to a GPU; on a CPU, with streams that do nothing.

What CUDA itself does with them is for tests/test_gpu.py.
"""

import contextlib
import gc
import mmap
import os
import threading
import weakref
from itertools import pairwise
from unittest import mock
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from quick import first_is_quick
from toys import store_videos, toy_features, toy_spec

import featstore
from featstore.records.storage import GRANULARITIES, Storage
from featstore.system import file_map
from featstore.torch import conversion, explain, to_tensor
from featstore.torch.kernels.quantize import TORCH_DTYPES
from featstore.torch.upload import cudart, registered, staged, transfer


class Event:
    def synchronize(self):
        pass


class Stream:
    def record_event(self):
        return Event()

    def wait_event(self, event):
        assert isinstance(event, Event)

    def wait_stream(self, stream):
        assert isinstance(stream, Stream)


class Runtime:
    """Registers what it is asked to, or refuses with a code."""

    def __init__(self, code=0):
        self.code = code
        self.spans = {}

    def cudaHostRegister(self, start, size, flags):
        assert flags == 9
        self.spans[start] = size
        return self.code

    def cudaHostUnregister(self, start):
        del self.spans[start]
        return 0


@pytest.fixture
def runtime(monkeypatch):
    stream, empty = Stream(), torch.empty
    monkeypatch.setattr(conversion, "copy_stream", lambda device: stream)
    monkeypatch.setattr(transfer, "refuse_missing", lambda device: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: stream)
    for name in ("device", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda which: contextlib.nullcontext())
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=0, **how: empty(*size, **how))
    monkeypatch.setattr(staged, "PIECE_BYTES", 7000)
    monkeypatch.setattr(staged, "_LAST_PIECE_BYTES", 1000)
    monkeypatch.setattr(conversion, "_ASYNCHRONOUS", 1000)
    monkeypatch.setattr(registered, "SMALLEST", 1)
    found, maps = Runtime(), weakref.WeakKeyDictionary()
    monkeypatch.setattr(registered, "_maps", maps)
    monkeypatch.setattr(cudart, "_cudart", lambda: found)
    monkeypatch.setattr(cudart, "_clear_error", lambda code: code)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: -1)
    yield found
    for known in maps.values():  # there is no CUDA to unregister them with later
        known.starts.clear()


@pytest.fixture(params=first_is_quick([(4096, 12), (10_000, 4), (1000, 2), (1 << 20, 1)]))
def ring(request, monkeypatch, runtime):
    """Slots that hold no whole number of rows, of which few there are, and one that holds all."""
    slot_bytes, slots = request.param
    ring = staged.Ring(slot_bytes=slot_bytes, slots=slots)
    monkeypatch.setattr(staged, "_ring", (os.getpid(), ring))
    return ring


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    cache = tmp_path_factory.mktemp("transfer") / "cache"
    videos = {f"v{i}": toy_features(i, frames=2000 + i) for i in range(2)}
    spec = toy_spec(3000)
    for granularity in GRANULARITIES:
        for codec in ("raw", "lz4", "zstd"):
            storage = Storage("int8", granularity, codec)
            store_videos(cache, f"{granularity}-{codec}", videos, spec=spec, storage=storage)
    store_videos(cache, "bf16", videos, spec=spec, storage=Storage("bf16"))
    return featstore.open(cache)


def put(features, way):
    """What `to_tensor` does for a GPU, into memory of the CPU."""
    out = torch.full(features.shape, float("nan"), dtype=torch.bfloat16)
    kind = TORCH_DTYPES[features.header.storage.values]
    conversion._put(features, out, out.device, out.dtype, kind, way)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("way", transfer.WAYS)
def test_every_way_puts_the_pieces_together(ring, store, way):
    for name in store:
        for features in store[name].values():
            for _ in range(3):
                assert torch.equal(put(features, way), to_tensor(features)), name


def test_an_upload_that_was_given_up_leaves_the_ring_usable(ring):
    values = np.random.default_rng(0).integers(0, 256, 100_001, dtype=np.uint8)
    out = torch.zeros(len(values), dtype=torch.uint8)
    for _ in range(3):
        given_up = ring.upload(values, out)
        next(given_up)
        given_up.close()
        out.zero_()
        crossed = [count for count, _ in ring.upload(values, out)]
        assert crossed == sorted(crossed)
        assert crossed[-1] == len(values)
        assert torch.equal(out, torch.from_numpy(values))


def test_an_upload_waits_for_what_an_interrupted_one_had_begun(ring, monkeypatch):
    """The GPU may still read its slot: without its event the next upload would write into it."""
    values = np.random.default_rng(0).integers(0, 256, 100_001, dtype=np.uint8)
    out = torch.zeros(len(values), dtype=torch.uint8)
    waited = []
    monkeypatch.setattr(Stream, "synchronize", lambda stream: waited.append(stream), raising=False)
    interrupt = Mock(side_effect=KeyboardInterrupt)
    with mock.patch.object(Stream, "record_event", interrupt), pytest.raises(KeyboardInterrupt):
        list(ring.upload(values, out))
    for _ in range(2):
        out.zero_()
        list(ring.upload(values, out))
        assert torch.equal(out, torch.from_numpy(values))
        assert len(waited) == 1, "once, and before anything is written"


def test_a_slot_is_filled_again_once_the_gpu_has_read_it(ring, monkeypatch):
    values = np.random.default_rng(0).integers(0, 256, 100_001, dtype=np.uint8)
    out, waited = torch.zeros(len(values), dtype=torch.uint8), []
    monkeypatch.setattr(Event, "synchronize", lambda event: waited.append(event))
    events = [event for _ in range(2) for _, event in ring.upload(values, out)]
    slots, slot_bytes = ring._memory.shape
    sent = 2 * -(-len(values) // slot_bytes)
    assert len(waited) == max(0, sent - slots)
    assert set(waited) - set(ring._passed) == set(waited), "of copies that are all done by now"
    assert events[-1] is ring._passed[ring._next - 1]


@pytest.mark.parametrize("way", first_is_quick(["staged", "registered", "pageable"]))
def test_a_map_is_let_go_of_with_the_last_who_uses_it(ring, tmp_path, way):
    store_videos(tmp_path / "cache", "d", {"v": toy_features(0)})
    store = featstore.open(tmp_path / "cache")
    features = store["d"]["v"]
    put(features, way)
    owner = weakref.ref(features.owner)
    store.close()
    del features, store
    gc.collect()
    assert owner() is None


@pytest.mark.parametrize("unit", [1, 3000, 1 << 20])
def test_pieces_are_whole_slots_and_ever_smaller(runtime, unit):
    for count in (1, 1000, 2999, 7001, 50_000, 100_001):
        ends = [0, *staged.piece_ends(count, unit)]
        sizes = [end - start for start, end in pairwise(ends)]
        assert ends[-1] == count
        assert all(end % unit == 0 for end in ends[:-1])
        assert sizes == sorted(sizes, reverse=True)
        assert 0 < sizes[-1] <= max(1000, unit)
        assert sizes[0] <= max(7000, unit)


@pytest.mark.slow
def test_what_is_raised_between_two_pieces_lets_go_of_the_ring(ring, store, monkeypatch):
    """Its traceback kept the upload, and with it the lock: the next one waited for good."""
    features = store["channel-raw"]["v0"]

    def refuse(*words):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(conversion, "_fill", refuse)
    with pytest.raises(torch.OutOfMemoryError) as kept:
        put(features, "staged")
    monkeypatch.undo()
    assert not ring._lock.locked()
    assert kept.tb is not None


def test_a_gpu_has_one_stream_by_either_of_its_names(monkeypatch):
    """Two did not wait for each other: a tensor was filled anew while the one before was still being made."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: [device])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(cudart, "_local", threading.local())
    one = cudart.copy_stream(torch.device("cuda"))
    assert one == [torch.device("cuda:1")]
    assert cudart.copy_stream(torch.device("cuda:1")) is one
    assert cudart.copy_stream(torch.device("cuda:0")) is not one


def test_auto_registers_a_record_that_is_asked_for_again(ring, runtime, tmp_path):
    videos = {"v": toy_features(0, frames=4000), "w": toy_features(1, frames=4000)}
    store_videos(tmp_path / "cache", "d", videos, spec=toy_spec(4000))
    dataset = featstore.open(tmp_path / "cache")["d"]
    features = dataset["v"]
    assert explain(features) == "staged: it is registered when it is asked for again"
    put(features, "auto")
    assert runtime.spans == {}
    assert explain(features).startswith("registered")
    put(features, "auto")
    (size,) = runtime.spans.values()
    assert features.data.nbytes <= size < features.data.nbytes + mmap.PAGESIZE
    assert explain(features).startswith("registered")
    assert explain(dataset["w"]).startswith("staged")


def test_auto_registers_nothing_that_does_not_lie_in_memory(ring, runtime, tmp_path, monkeypatch):
    """Registering a cold record reads it page by page."""
    store_videos(tmp_path / "cache", "d", {"v": toy_features(0)})
    features = featstore.open(tmp_path / "cache")["d"]["v"]
    monkeypatch.setattr(registered, "is_resident", lambda address, length: False)
    for _ in range(3):
        assert torch.equal(put(features, "auto"), to_tensor(features))
    assert runtime.spans == {}
    assert explain(features).endswith("registered once all of it is in memory")


def test_what_is_read_once_is_not_looked_for_in_memory(ring, runtime, store, monkeypatch):
    """To look takes as long as to copy a part of it."""
    monkeypatch.setattr(registered, "is_resident", lambda *span: pytest.fail("looked"))
    for features in store["token-raw"].values():
        put(features, "auto")


def test_auto_registers_nothing_of_a_file_that_hides_what_lies_in_memory(
    ring, runtime, tmp_path, monkeypatch
):
    """A cold record was taken for a hot one, registered and read page by page."""
    store_videos(tmp_path / "cache", "d", {"v": toy_features(0)})
    monkeypatch.setattr(file_map, "hides_pages", lambda fd: True)
    features = featstore.open(tmp_path / "cache")["d"]["v"]
    for _ in range(4):
        assert explain(features).startswith("staged: the system tells only who may write the file")
        assert torch.equal(put(features, "auto"), to_tensor(features))
    assert runtime.spans == {}
    put(features, "registered")
    assert explain(features).startswith("registered")


def test_a_refused_registration_is_staged_and_explained(ring, runtime, tmp_path):
    store_videos(tmp_path / "cache", "d", {"v": toy_features(0)})
    features = featstore.open(tmp_path / "cache")["d"]["v"]
    runtime.code = 801
    found = put(features, "registered")
    assert torch.equal(found, to_tensor(features))
    assert "CUDA refused to register" in explain(features)
    assert "error 801" in explain(features)


def test_all_that_is_registered_stays_within_half_of_memory(ring, runtime, tmp_path, monkeypatch):
    """Each map was held to half of it, and to half of the host's where a container has less."""
    videos = {"v": toy_features(0, frames=1000)}
    for name in ("one", "two", "three"):
        store_videos(tmp_path / "cache", name, videos, spec=toy_spec(1000))
    store = featstore.open(tmp_path / "cache")
    records = [store[name]["v"] for name in ("one", "two", "three")]
    monkeypatch.setattr(registered, "memory_bytes", lambda: 4 * 9 * mmap.PAGESIZE)
    for _ in range(2):
        for features in records:
            assert torch.equal(put(features, "registered"), to_tensor(features))
    assert 0 < sum(runtime.spans.values()) <= 2 * 9 * mmap.PAGESIZE
    assert len(runtime.spans) == 2
    assert explain(records[2]).startswith("staged: 50% of memory")


def test_a_small_record_is_staged(ring, runtime, tmp_path, monkeypatch):
    """Several share a page."""
    monkeypatch.setattr(registered, "SMALLEST", 64 << 10)
    store_videos(tmp_path / "cache", "d", {"v": toy_features(0)})
    features = featstore.open(tmp_path / "cache")["d"]["v"]
    for _ in range(2):
        assert torch.equal(put(features, "registered"), to_tensor(features))
    assert runtime.spans == {}
    assert explain(features) == "staged: a record below 64 KiB is copied as fast"


def test_records_are_unregistered_before_their_map_goes(ring, runtime, tmp_path):
    store_videos(tmp_path / "cache", "d", {"v": toy_features(0)})
    store = featstore.open(tmp_path / "cache")
    features = store["d"]["v"]
    put(features, "registered")
    assert len(runtime.spans) == 1
    store.close()
    assert len(runtime.spans) == 1
    del features, store
    gc.collect()
    assert runtime.spans == {}


def test_a_registration_that_was_interrupted_is_undone(ring, runtime, tmp_path, monkeypatch):
    """An address that is used again later would be read from the pages that were registered."""
    store_videos(tmp_path / "cache", "d", {"v": toy_features(0)})
    features = featstore.open(tmp_path / "cache")["d"]["v"]
    real = runtime.cudaHostRegister

    def interrupted(*words):
        real(*words)
        raise KeyboardInterrupt

    monkeypatch.setattr(runtime, "cudaHostRegister", interrupted, raising=False)
    with pytest.raises(KeyboardInterrupt):
        put(features, "registered")
    assert runtime.spans == {}
    monkeypatch.delattr(runtime, "cudaHostRegister")
    assert torch.equal(put(features, "registered"), to_tensor(features))
    assert explain(features).startswith("registered")
    del features
    gc.collect()
    assert runtime.spans == {}


@pytest.mark.parametrize("way", ["registered", "pageable"])
@pytest.mark.parametrize("place", [(-2, 3), (1, 1), (7, 5), (0, 1), (-5, 30)])
def test_registrations_of_replaced_records_are_undone(ring, runtime, tmp_path, way, place):
    """Their pages are used again by others, and CUDA copies across no edge of a registration."""
    store_videos(tmp_path / "cache", "d", {"v": toy_features(0, frames=1000)}, spec=toy_spec(1000))
    features = featstore.open(tmp_path / "cache")["d"]["v"]
    address, size = features.data.ctypes.data, features.data.nbytes
    first = address - address % mmap.PAGESIZE
    put(features, "staged")
    for pages, count in (place, (100, 1), (-40, 2)):
        start = first + pages * mmap.PAGESIZE
        registered.register_record(features.owner, start, count * mmap.PAGESIZE, at_once=True)
    before = set(runtime.spans)
    assert torch.equal(put(features, way), to_tensor(features))
    kept = {first + 100 * mmap.PAGESIZE, first - 40 * mmap.PAGESIZE}
    assert set(runtime.spans) - {first} == before & kept
    assert (first in runtime.spans) == (way == "registered")
    assert sorted(runtime.spans) == registered._maps[features.owner].starts
    assert size < 10 * mmap.PAGESIZE


def test_without_page_locked_memory_the_copy_is_pageable(runtime, store, monkeypatch):
    def refuse():
        raise RuntimeError("no page-locked memory")

    monkeypatch.setattr(transfer, "shared_ring", refuse)
    features = store["token-raw"]["v0"]
    assert torch.equal(put(features, "staged"), to_tensor(features))


def test_an_unknown_way_is_refused(store):
    with pytest.raises(ValueError, match="use one of auto, registered, staged, pageable"):
        to_tensor(store["bf16"]["v0"], way="fastest")
