"""One model, asked by several threads, by forked children, and by both at once: answers and stored features stay right.

What is right is what a model of its own gives that is asked one question after the other.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from drills.shared.clips import make_clips
from drills.shared.processes import ask, begin
from toys import REPOSITORY, children_of, run_python

import featstore
from featstore.decoding.worker import MODULE
from featstore.errors import FeatstoreError
from featstore.models import CachedLongVA
from featstore.models.statistics import CacheStatistics
from featstore.sampling import Sampling
from featstore.torch import TensorCache, prefetch
from featstore.torch.forked import computing

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.race,
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]

VIDEOS = tuple(f"v{number:03}" for number in range(4))
ASK = "What is this?"
THREADS = 4
CHILDREN = 2
WAIT = 100.0


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    make_clips(folder, len(VIDEOS), broken=False)
    return {video: folder / f"{video}.mp4" for video in VIDEOS}


def open_model(checkpoint, cache_dir, **options):
    options = {"dataset": "demo", "sampling": Sampling(4), "device": "cpu"} | options
    return CachedLongVA(checkpoint, cache_dir, **options)


def answers(model, files, videos=VIDEOS):
    """The answers about `videos`, as JSON has them."""
    return {
        video: model.generate_ids(ASK, video, path=files[video], max_new_tokens=4)
        for video in videos
    }


def stored(cache_dir):
    store = featstore.open(cache_dir)["demo"]
    return {
        video: (features.data.tobytes(), *(scale.tobytes() for scale in features.scales))
        for video, features in store.items()
    }


@pytest.fixture(scope="module")
def right(tiny, files, tmp_path_factory):
    """The answers and the stored features of a model that nobody shares, with a cache and without."""
    folder = tmp_path_factory.mktemp("right") / "cache"
    with open_model(tiny, folder) as model, open_model(tiny, None) as uncached:
        return answers(model, files), stored(folder), answers(uncached, files)


@pytest.fixture
def model(tiny, cache):
    models = []

    def build(cache_dir=cache, **options):
        models.append(open_model(tiny, cache_dir, **options))
        return models[-1]

    yield build
    for built in models:
        built.close()


def in_threads(model, files, count=THREADS):
    """The answers that each of some threads got, each beginning with another video, all at the same moment."""
    ready = threading.Barrier(count)

    def work(number):
        ready.wait()
        return answers(model, files, VIDEOS[number:] + VIDEOS[:number])

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


def in_children(model, files, count=CHILDREN):
    """The same, of forked children."""
    asked = [
        begin(answers, model, files, VIDEOS[number:] + VIDEOS[:number]) for number in range(count)
    ]
    return [child.answer(WAIT) for child in asked]


@pytest.mark.parametrize(
    ("way", "prefixes"), [(in_threads, 0), (in_threads, 1), (in_threads, 8), (in_children, 1)]
)
def test_missing_videos_are_stored_and_answered_as_themselves(
    model, files, cache, right, way, prefixes
):
    expected, features, _ = right
    asked = model(prefix_cache=prefixes)
    asked.generate(ASK, "first", path=files["v000"], max_new_tokens=1)  # its decoder runs
    cold = way(asked, files)
    warm = way(asked, files)
    found = stored(cache)
    del found["first"]
    assert found == features
    assert [each == expected for each in cold + warm] == [True] * len(cold + warm)


@pytest.mark.parametrize(
    ("way", "options"),
    [(in_threads, {"on_miss": "encode-only"}), (in_children, {"cache_dir": None})],
)
def test_videos_that_are_not_stored_are_answered_as_themselves(model, files, right, way, options):
    asked = model(**options)
    asked.generate(ASK, "first", path=files["v000"], max_new_tokens=1)
    assert way(asked, files) == [right[2]] * (THREADS if way is in_threads else CHILDREN)


def test_children_forked_while_threads_ask_are_right_and_do_not_hang(model, files, cache, right):
    expected, features, _ = right
    asked, children = model(), []
    with ThreadPoolExecutor(THREADS) as pool:
        threads = [
            pool.submit(answers, asked, files, VIDEOS[i:] + VIDEOS[:i]) for i in range(THREADS)
        ]
        children = [begin(in_threads, asked, files, 2) for _ in range(CHILDREN)]
        found = [thread.result() for thread in threads]
    for child in children:
        found += child.answer(WAIT)
    assert [each == expected for each in found] == [True] * len(found)
    assert stored(cache) == features


def test_a_child_forked_while_a_thread_is_encoding_does_not_wait_for_it(model, files, right):
    asked, inside, go_on = model(None), threading.Event(), threading.Event()
    encode = asked._encoder.encode

    def wait_inside(frames):
        inside.set()
        assert go_on.wait(WAIT)
        return encode(frames)

    asked._encoder.encode = wait_inside
    thread = threading.Thread(target=answers, args=(asked, files, ["v001"]))
    thread.start()
    assert inside.wait(WAIT)

    def in_child():
        asked._encoder.encode = encode
        return answers(asked, files, ["v002"])

    try:
        child = begin(in_child)
        assert child.answer(WAIT) == {"v002": right[2]["v002"]}
    finally:
        go_on.set()
        thread.join()


def test_a_child_that_ends_leaves_the_parents_decoder_at_work(model, files, right):
    asked = model(None)
    answers(asked, files, ["v000"])
    before = children_of(os.getpid(), MODULE)

    def in_child():
        answers(asked, files, ["v001"])
        asked.close()

    ask(in_child)
    assert answers(asked, files, ["v002"]) == {"v002": right[2]["v002"]}
    assert children_of(os.getpid(), MODULE) == before
    assert len(before) == 1


def test_a_child_of_a_process_that_computed_on_many_threads_answers(tiny, files):
    """libgomp's threads are not in the child, and it waits for them for good."""
    program = """
import sys, torch
from featstore.models import CachedLongVA
from featstore.sampling import Sampling
torch.set_num_threads(4)
checkpoint, path, tools = sys.argv[1:]
sys.path.append(tools)
from drills.shared.processes import begin
with CachedLongVA(checkpoint, sampling=Sampling(4), device="cpu", dtype="fp32") as model:
    ask = lambda: model.generate_ids("What is this?", "video", path=path, max_new_tokens=4)
    assert ask() == begin(ask).answer(60)
"""
    done = run_python(program, tiny, files["v000"], REPOSITORY / "tools", timeout=100)
    assert done.returncode == 0, done.stderr


def test_on_a_gpu_a_forked_child_is_refused_in_words(model, files, monkeypatch):
    asked = model(None)
    frame = (*asked._encoder.preprocessing.max_frame, 3)
    monkeypatch.setattr("torch.cuda._is_in_bad_fork", lambda: True)
    monkeypatch.setattr(asked._encoder, "device", torch.device("cuda:0"))
    for question in (
        lambda: asked.generate(ASK, "v000", path=files["v000"]),
        lambda: asked.answer_features(ASK, torch.zeros(4, 128)),
        lambda: asked._encoder.encode(np.zeros((1, *frame), np.uint8)),
    ):
        with pytest.raises(FeatstoreError, match=r"forked from one that used CUDA.*spawn"):
            question()


def test_each_process_counts_and_reports_what_it_asked_itself(model, files):
    asked = model()
    answers(asked, files, ["v000"])

    def in_child():
        answers(asked, files, ["v000", "v000"])
        return asked.statistics.hits, asked.statistics.misses

    assert ask(in_child) == [2, 0]
    assert (asked.statistics.hits, asked.statistics.misses) == (0, 1)


def test_no_count_is_lost_where_threads_count_at_once():
    statistics = CacheStatistics()

    def work(_):
        for _ in range(2_000):
            statistics.add(hits=1, bytes_read=2)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert (statistics.hits, statistics.bytes_read) == (16_000, 32_000)


def test_a_prefetch_that_the_parent_began_is_refused_in_a_child(model, files, cache):
    answers(model(), files)
    videos = prefetch(featstore.open(cache)["demo"], VIDEOS, ahead=1)
    next(videos)

    def in_child():
        with pytest.raises(FeatstoreError, match="forked after prefetch started"):
            list(videos)
        return True

    assert begin(in_child).answer(WAIT)
    assert len(list(videos)) == len(VIDEOS) - 1


def test_a_cache_of_tensors_is_not_locked_in_a_child():
    tensors = TensorCache(1 << 20)
    tensors._lock.acquire()  # as a thread holds it while another forks
    try:
        assert begin(lambda: tensors.get("a", lambda: torch.zeros(2)).tolist()).answer(WAIT) == [
            0,
            0,
        ]
    finally:
        tensors._lock.release()


def test_a_fork_waits_for_the_threads_that_compute():
    """What a library locks inside, as MKL its buffers, is locked in the child for good."""
    inside, leave, order = threading.Event(), threading.Event(), []

    def compute():
        with computing(torch.device("cpu")):
            inside.set()
            assert leave.wait(WAIT)
            order.append("computed")

    def fork():
        order.append(ask(lambda: "forked"))

    threads = [threading.Thread(target=work) for work in (compute, fork)]
    threads[0].start()
    assert inside.wait(WAIT)
    threads[1].start()
    threads[1].join(0.2)
    leave.set()
    for thread in threads:
        thread.join()
    assert order == ["computed", "forked"]


def test_a_thread_that_forks_while_it_computes_waits_for_no_other():
    with computing(torch.device("cpu")):
        assert ask(lambda: "forked") == "forked"
    with computing(torch.device("cpu")):
        pass
