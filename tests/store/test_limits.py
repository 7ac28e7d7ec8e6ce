"""What the process may not, and where it is: few descriptors, another working directory."""

import os

import pytest
from toys import put_video, run_python, store_videos, toy_features, toy_spec

import featstore
from featstore.errors import StoreNotFound
from featstore.models.lookup import FeatureRequest, Lookup
from featstore.store.writer import FeatureWriter

SPEC = toy_spec()
A = toy_features(1)

FEW_DESCRIPTORS = """
import os, resource, sys, traceback
import featstore
from featstore.errors import FeatstoreError
from featstore.store import describe as info
from featstore.store.maintenance import check, compact, remove, seal
from toys import *
[getattr(featstore, name) for name in featstore.__all__]
cache = sys.argv[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

def attempt(act):
    try:
        act()
    except FeatstoreError as exc:
        assert "Too many open files" in str(exc) and "ulimit -n" in str(exc), exc
        print("refused")

A = toy_features(1)
ACTS = (
    lambda cache: featstore.get(cache, "demo", "a").data,
    lambda cache: check.check_dataset(cache, "demo"),
    lambda cache: store_videos(cache, "demo", {"a": A}),
    lambda cache: store_videos(cache, f"new{os.getpid()}", {"a": A}),
    lambda cache: compact.compact_dataset(cache, "demo"),
    lambda cache: seal.seal_dataset(cache, "demo"),
    lambda cache: featstore.get(cache, "demo", "a").data,
    lambda cache: seal.unseal_dataset(cache, "demo"),
)
store_videos(sys.argv[2], "demo", {"a": A})
for act in ACTS:
    act(sys.argv[2])  # what is imported at the first use is imported now
for act in ACTS:
    for free in range(10):
        if os.fork() == 0:
            taken = []
            try:
                while True:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                for fd in taken[:free]:
                    os.close(fd)
            code = 1
            try:
                attempt(lambda: act(cache))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        assert os.wait()[1] == 0
"""


@pytest.mark.slow
def test_at_the_limit_of_descriptors_all_is_done_or_refused_in_words(cache, tmp_path):
    store_videos(cache, "demo", {"a": A})
    done = run_python(FEW_DESCRIPTORS, cache, tmp_path / "warm")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused") >= 8


def test_a_cache_that_is_named_by_a_relative_path_stays_the_same_one(cache, tmp_path, monkeypatch):
    store_videos(cache, "demo", {"a": A})
    store_videos(cache, "other", {"a": A})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    store, lookup = featstore.open("cache"), Lookup("cache")
    dataset = store["demo"]
    with FeatureWriter("cache", "demo", min_free=0, max_size=1 << 40) as writer:
        writer.add_set(SPEC, origin="toy")
        monkeypatch.chdir(tmp_path / "elsewhere")
        put_video(writer, SPEC, "b", A)
    assert set(dataset) == {"a", "b"}
    assert set(store) == {"demo", "other"}
    assert store["other"]["a"].shape == (16, 8)
    assert lookup.find(FeatureRequest("demo", "b", None, SPEC)) is not None
    assert os.listdir() == []


def test_a_relative_path_from_nowhere_is_told_so(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(StoreNotFound, match="cache is relative and the working directory is gone"):
        FeatureWriter("cache", "demo")
    monkeypatch.chdir(tmp_path)
