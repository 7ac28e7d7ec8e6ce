"""Reading several videos: ahead of the model, again, and as a dataset for training."""

import itertools
import multiprocessing
import pickle
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from toys import store_videos, toy_features, toy_spec

import featstore
from featstore.errors import FeatureNotFound, StoreMismatch
from featstore.store.maintenance.push_pull import push
from featstore.store.maintenance.remove import remove_set
from featstore.store.shards.remote.reading import FetchedRecords
from featstore.torch import FeatureDataset, TensorCache, prefetch, prefetching, to_tensor

VIDEOS = {f"v{i}": toy_features(i) for i in range(6)}


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    cache = tmp_path_factory.mktemp("prefetch") / "cache"
    store_videos(cache, "demo", VIDEOS)
    store_videos(cache, "two", VIDEOS)
    store_videos(cache, "two", {"v0": toy_features(0, frames=2)}, spec=toy_spec(2))
    return cache


class Source:
    """A dataset that counts what was asked of it."""

    def __init__(self, dataset):
        self._dataset = dataset
        self.looked_up = []
        self.read = []

    def lookup(self, video):
        self.looked_up.append(video)
        return self._dataset.lookup(video)

    def read_ahead(self, video):
        self.read.append(video)
        self._dataset.read_ahead(video)


def prefetching_threads():
    return [thread for thread in threading.enumerate() if thread.name == "featstore-prefetch"]


@pytest.mark.parametrize("ahead", [0, 1, 2, 10])
def test_videos_come_in_the_order_asked_for(cache_dir, ahead):
    dataset = featstore.open(cache_dir)["demo"]
    names = ["v3", "v1", "v3", "v0", "v5"]
    found = list(prefetch(dataset, names, ahead=ahead))
    assert [name for name, _ in found] == names
    assert all(torch.equal(tensor, to_tensor(dataset[name])) for name, tensor in found)
    assert prefetching_threads() == []


def test_all_features_are_of_the_set_that_was_the_default_at_the_first(tmp_path):
    store_videos(tmp_path, "demo", VIDEOS)
    store_videos(tmp_path, "demo", VIDEOS, spec=toy_spec(8))
    removed = threading.Event()

    def names():
        first, second, *_ = VIDEOS
        yield first
        removed.wait()  # what is looked up in the middle of a removal is said to be missing
        yield second

    found = prefetch(featstore.open(tmp_path)["demo"], names(), ahead=0)
    next(found)
    remove_set(tmp_path, "demo", toy_spec())
    removed.set()
    with pytest.raises(FeatureNotFound, match=rf"set {toy_spec().digest[:8]} was removed"):
        list(found)


def test_what_a_look_up_raises_is_raised_in_its_turn(cache_dir):
    found = prefetch(featstore.open(cache_dir)["demo"], ["v0", "v1", "none", "v2"])
    assert next(found)[0] == "v0"
    assert next(found)[0] == "v1"
    with pytest.raises(FeatureNotFound, match="'none'"):
        next(found)
    assert prefetching_threads() == []


def test_an_iterator_that_is_closed_ends_its_thread(cache_dir):
    found = prefetch(featstore.open(cache_dir)["demo"], itertools.cycle(VIDEOS))
    assert next(found)[0] == "v0"
    assert len(prefetching_threads()) == 1
    found.close()
    assert prefetching_threads() == []


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_no_more_is_looked_up_than_asked_for_ahead(cache_dir, ahead):
    """Beside what is ahead, one more is made while the caller works on its own."""
    source = Source(featstore.open(cache_dir)["demo"])
    found = prefetch(source, itertools.cycle(VIDEOS), ahead=ahead)
    next(found)
    most = 1 + ahead + 1
    deadline = time.monotonic() + 10
    while len(source.looked_up) < most and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert len(source.looked_up) == most
    assert source.read[:most] == source.looked_up
    assert len(source.read) <= most + 2
    found.close()
    with pytest.raises(ValueError, match="ahead is -1; it must be 0 or more"):
        next(prefetch(source, VIDEOS, ahead=-1))


def test_records_from_elsewhere_are_fetched_several_at_once(cache_dir, tmp_path, monkeypatch):
    push(cache_dir, str(tmp_path / "share"))
    demo = featstore.open(tmp_path / "share", local=tmp_path / "local")["demo"]
    fetch, several, begun = FetchedRecords._fetch, threading.Barrier(3), itertools.count()

    def fetch_together(*given):
        if next(begun) < 3:  # none of these comes before all have begun
            several.wait(timeout=60)
        fetch(*given)

    monkeypatch.setattr(FetchedRecords, "_fetch", fetch_together)
    names = sorted(VIDEOS)
    found = dict(prefetch(demo, names, ahead=2))
    assert list(found) == names
    for name, x in found.items():
        assert torch.equal(x, to_tensor(featstore.get(cache_dir, "demo", name)))


def test_two_may_prefetch_at_once(cache_dir):
    dataset = featstore.open(cache_dir)["demo"]
    pairs = zip(prefetch(dataset, VIDEOS), prefetch(dataset, reversed(VIDEOS)), strict=True)
    for (a, x), (b, y) in pairs:
        assert torch.equal(x, to_tensor(dataset[a]))
        assert torch.equal(y, to_tensor(dataset[b]))


def test_a_cache_makes_a_tensor_once():
    cache = TensorCache(1000)
    made = cache.get("a", lambda: torch.zeros(100))
    assert cache.get("a", lambda: pytest.fail("made twice")) is made
    cache.clear()
    assert cache.nbytes == 0
    assert cache.get("a", lambda: torch.ones(100)) is not made


def test_a_cache_lets_go_of_what_was_not_used_longest():
    cache = TensorCache(1000)
    for key in "ab":
        cache.get(key, lambda: torch.zeros(100))
    cache.get("a", lambda: pytest.fail("it is there"))
    cache.get("c", lambda: torch.zeros(100))
    assert cache.nbytes == 800
    cache.get("a", lambda: pytest.fail("it is there"))
    made = []
    cache.get("b", lambda: made.append("b") or torch.zeros(100))
    assert made == ["b"]


def test_a_tensor_larger_than_the_cache_is_not_kept():
    cache = TensorCache(1000)
    cache.get("a", lambda: torch.zeros(100))
    assert len(cache.get("large", lambda: torch.zeros(1000))) == 1000
    assert cache.nbytes == 400
    cache.get("a", lambda: pytest.fail("it is there"))


def test_threads_share_a_cache():
    cache, wrong = TensorCache(4000), []

    def work(seed):
        for i in range(300):
            key = (i * seed) % 17
            tensor = cache.get(key, lambda key=key: torch.full((100,), float(key)))
            if tensor[0] != key:
                wrong.append(key)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 3, 5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert 0 < cache.nbytes <= 4000


def test_a_cached_tensor_is_waited_for_on_the_stream_that_asks_again(monkeypatch):
    """It may still be being made on another stream, which would also use its memory again once it is let go of."""
    said = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def record_event(self):
            return f"after {self.name}"

        def wait_event(self, event):
            said.append(f"{self.name} waits {event}")

    class Tensor:
        is_cuda, nbytes, device = True, 100, torch.device("cuda:0")

        def record_stream(self, stream):
            said.append(f"used on {stream.name}")

    cache, tensor = TensorCache(1000), Tensor()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("maker"))
    assert cache.get("a", lambda: tensor) is tensor
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("other"))
    assert cache.get("a", lambda: pytest.fail("made twice")) is tensor
    assert said == ["other waits after maker", "used on other"]


def test_tensors_for_the_cpu_leave_cuda_alone(cache_dir, monkeypatch):
    """A child that was forked after CUDA was used must not begin it."""
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: pytest.fail("CUDA was begun"))
    dataset = featstore.open(cache_dir)["demo"]
    assert [name for name, _ in prefetch(dataset, dataset)] == list(dataset)


def test_two_who_make_a_tensor_at_once_get_the_first_and_wait_for_it(monkeypatch):
    waited, cache = [], TensorCache(1000)
    cuda = SimpleNamespace(
        is_cuda=True, nbytes=100, device=0, record_stream=lambda stream: waited.append("used")
    )
    stream = SimpleNamespace(record_event=lambda: "ready", wait_event=waited.append)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)

    def make():
        cache.get("a", lambda: cuda)  # another thread is quicker
        return SimpleNamespace(is_cuda=True, nbytes=100, device=0)

    assert cache.get("a", make) is cuda
    assert waited == ["ready", "used"]


def test_the_current_gpu_is_the_one_of_whoever_asks(cache_dir, monkeypatch):
    """The thread that reads ahead has the first one for its own."""
    asked = []

    def number(device):
        asked.append((str(device), threading.current_thread()))
        return torch.device("cpu")

    monkeypatch.setattr(prefetching, "about_to_compute", lambda device: None)
    monkeypatch.setattr(prefetching, "numbered", number)
    dataset = featstore.open(cache_dir)["demo"]
    names = [name for name, _ in prefetch(dataset, dataset, device="cuda")]
    assert names == list(dataset)
    assert asked == [("cuda", threading.current_thread())]


def test_a_dataset_has_every_video_in_order(cache_dir):
    dataset = FeatureDataset(cache_dir, "demo")
    stored = featstore.open(cache_dir)["demo"]
    assert dataset.videos == sorted(VIDEOS)
    assert len(dataset) == len(VIDEOS)
    for i, name in enumerate(dataset.videos):
        assert torch.equal(dataset[i], to_tensor(stored[name]))
    assert FeatureDataset(cache_dir, "demo", videos=["v4", "v2"]).videos == ["v4", "v2"]


def test_a_dataset_of_videos_that_are_not_stored_is_refused_at_once(cache_dir):
    for videos in (["nope"], ["v4", "nope"], "v4"):
        with pytest.raises(FeatureNotFound, match="is not stored in dataset 'demo'"):
            FeatureDataset(cache_dir, "demo", videos=videos)
    with pytest.raises(FeatureNotFound, match="'v4' is not stored"):  # of this set
        FeatureDataset(cache_dir, "two", videos=["v0", "v4"], nframe=2)
    with pytest.raises(TypeError, match=r"dtype is 'bf16'; pass a torch\.dtype"):
        FeatureDataset(cache_dir, "demo", dtype="bf16")


def test_the_default_set_is_meant_unless_another_is_named(cache_dir):
    assert FeatureDataset(cache_dir, "two").videos == sorted(VIDEOS)
    stored = featstore.open(cache_dir)["two"]
    other = toy_spec(2)
    for named in ({"nframe": 2}, {"spec": other}, {"spec": other.digest[:8]}):
        dataset = FeatureDataset(cache_dir, "two", dtype=torch.float32, **named)
        assert dataset.videos == ["v0"]
        features = stored.sets[other.digest]["v0"]
        assert torch.equal(dataset[0], to_tensor(features, dtype=torch.float32))
    with pytest.raises(StoreMismatch, match="no feature set"):
        FeatureDataset(cache_dir, "two", nframe=3)


def test_a_dataset_s_repr_is_a_line_that_says_what_it_is(cache_dir):
    dataset = FeatureDataset(cache_dir, "two", nframe=2)
    assert repr(dataset) == (
        f"<featstore.torch.FeatureDataset 'two': 1 video, {toy_spec(2).digest[:8]}, bfloat16>"
    )


def test_the_order_is_random_where_a_generator_is_given_and_the_same_again(cache_dir):
    dataset = FeatureDataset(cache_dir, "demo")

    def order(seed):
        generator = torch.Generator().manual_seed(seed)
        return [name for name, _ in dataset.batches(generator=generator)]

    assert [name for name, _ in dataset.batches()] == dataset.videos
    assert sorted(order(1)) == dataset.videos
    assert order(1) == order(1)
    assert len({tuple(order(seed)) for seed in range(5)}) > 1


def test_a_pickled_dataset_holds_names_alone(cache_dir):
    dataset = FeatureDataset(cache_dir, "demo")
    dataset[0]
    data = pickle.dumps(dataset)
    assert len(data) < 2000
    again = pickle.loads(data)
    assert torch.equal(again[3], dataset[3])


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_read_it_too(cache_dir, start):
    dataset = FeatureDataset(cache_dir, "demo")
    expected = [dataset[i] for i in range(len(dataset))]
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=None,
        num_workers=2,
        multiprocessing_context=multiprocessing.get_context(start),
        timeout=60,
    )
    found = list(loader)
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
