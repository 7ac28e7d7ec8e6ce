"""Views outlive whatever happens to the store. With bare LMDB the same programs read other bytes, or end in a signal.

Each runs in a process of its own, so that a crash is a failure and not the end of the tests.
"""

import subprocess
import textwrap

import pytest
from toys import run_python, store_videos, toy_features

pytestmark = pytest.mark.race

BEGIN = '''
import gc, os, sys, threading
from pathlib import Path
import featstore
from featstore.store import reader
from featstore.store.engine import environment as env
from featstore.store.maintenance.remove import remove_dataset
from toys import *

cache = Path(sys.argv[1])
spec = toy_spec()
want = {name: expected(toy_features(seed)) for seed, name in enumerate("abc")}
store = featstore.open(cache)

def good(features, name):
    return np.array_equal(features.data, want[name])

def slots():
    """The lines of this process in LMDB's table of readers."""
    return env.open_environment(cache / "demo").lmdb.readers()

def wait_for(child):
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

def replace_all(*seeds):
    for seed in seeds:
        store_videos(cache, "demo", {name: toy_features(seed) for name in "abcdef"})

def replace_all_elsewhere():
    """In another process, often enough that pages nobody holds are used again; the last seed is 14."""
    done = run_python("""
import sys
from toys import *
for seed in range(10, 15):
    store_videos(sys.argv[1], "demo", {name: toy_features(seed) for name in "abcdef"})
""", cache)
    assert done.returncode == 0, done.stderr
'''


@pytest.fixture
def run_with_store(cache):
    store_videos(cache, "demo", {name: toy_features(seed) for seed, name in enumerate("abc")})

    def run(program: str) -> subprocess.CompletedProcess[str]:
        done = run_python(f"{BEGIN}\n{textwrap.dedent(program)}\nprint('ok')", cache)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("ok\n")
        return done

    return run


def test_a_view_outlives_the_store_it_came_from(run_with_store):
    run_with_store("""
        features = store["demo"]["a"]
        store.close()
        assert good(features, "a")
        del store
        gc.collect()
        assert good(features, "a")
    """)


def test_an_array_alone_keeps_its_bytes(run_with_store):
    """Nothing of featstore's is held any more, only numpy's array, and then a slice of it."""
    run_with_store("""
        data = store["demo"]["a"].data
        store.close()
        del store
        gc.collect()
        assert np.array_equal(data, want["a"])
        part = data[3:5]
        del data
        gc.collect()
        assert np.array_equal(part, want["a"][3:5])
        assert len(env._environments) == 1
        del part
        gc.collect()
        assert len(env._environments) == 0
    """)


def test_features_not_looked_at_yet_keep_their_bytes_too(run_with_store):
    """`data` is made at its first use: until then the record's own views hold the map."""
    run_with_store("""
        features = store["demo"]["a"]
        store.close()
        del store
        gc.collect()
        replace_all_elsewhere()
        assert good(features, "a")
        assert [scale.shape for scale in features.scales] == [(len(features.data), 1), (1, 8)]
    """)


def test_a_view_shows_the_same_bytes_after_its_video_was_replaced_and_others_written(
    run_with_store,
):
    run_with_store("""
        features = store["demo"]["a"]
        replace_all_elsewhere()
        assert good(features, "a")
        assert np.array_equal(store["demo"]["a"].data, expected(toy_features(14)))
    """)


def test_a_view_shows_the_same_bytes_after_this_process_replaced_its_video(run_with_store):
    run_with_store("""
        features = store["demo"]["a"]
        for seed in range(10, 18):
            replace_all(seed)
            assert good(features, "a")
        assert np.array_equal(store["demo"]["a"].data, expected(toy_features(17)))
    """)


def test_a_view_outlives_its_dataset_and_a_new_one_of_that_name_is_read(run_with_store):
    run_with_store("""
        features = store["demo"]["a"]
        remove_dataset(cache, "demo")
        assert good(features, "a")
        store_videos(cache, "demo", {"a": toy_features(9)})
        assert good(features, "a")
        assert np.array_equal(store["demo"]["a"].data, expected(toy_features(9)))
        assert len(env._environments) == 2
        del features
        gc.collect()
        assert len(env._environments) == 1
    """)


def test_a_view_held_by_a_global_survives_the_end_of_the_interpreter(run_with_store):
    run_with_store("""
        kept = [store["demo"]["a"].data, store["demo"].snapshot(), store]
        sys.kept = kept
        class AtTheEnd:
            def __del__(self):
                assert kept[0].sum() is not None
        kept.append(AtTheEnd())
    """)


def test_a_forked_child_reads_the_parents_view_while_the_parent_goes_on(run_with_store):
    run_with_store("""
        features = store["demo"]["a"]
        release, released = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(released)
            os.read(release, 1)
            os._exit(0 if good(features, "a") else 1)
        replace_all(*range(10, 15))
        os.write(released, b"x")
        wait_for(child)
        assert good(features, "a")
    """)


def test_a_forked_child_opens_an_environment_of_its_own(run_with_store):
    run_with_store("""
        features = store["demo"]["a"]
        mine = env.open_environment(cache / "demo")
        before = slots()
        child = os.fork()
        if child == 0:
            assert env.open_environment(cache / "demo") is not mine
            assert good(store["demo"]["b"], "b")
            assert good(reader.get(cache, "demo", "c"), "c")
            assert good(features, "a")
            os._exit(0)
        wait_for(child)
        mine.lmdb.reader_check()
        assert slots() == before
        assert good(features, "a")
    """)


@pytest.mark.parametrize("ending", ["os._exit(0)", "sys.exit(0)"])
@pytest.mark.parametrize("reopening", [True, False])
def test_a_childs_end_leaves_the_parents_reader_slot_alone(run_with_store, ending, reopening):
    """It would let the next commit write over the pages of the parent's views."""
    done = run_with_store(f"""
        features = store["demo"]["a"]
        before = slots()
        assert len(before.splitlines()) == 2
        child = os.fork()
        if child == 0:
            if {reopening}:
                assert good(store["demo"]["b"], "b")
            store.close()
            del features, store
            gc.collect()
            {ending}
        wait_for(child)
        assert slots() == before
        replace_all_elsewhere()
        assert good(features, "a")
    """)
    assert done.stderr == ""


def test_a_child_that_lets_go_of_what_it_inherited_keeps_its_own_reader_slot(run_with_store):
    """Closing the inherited environment closes lock.mdb, and with it every lock the child has on that file: to others
    it looks dead, and the pages of its views are written over."""
    run_with_store("""
        features = store["demo"]["a"]
        ready, opened = os.pipe()
        release, released = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(released)
            own = reader.get(cache, "demo", "b")
            del features, store
            gc.collect()
            os.write(opened, b"x")
            os.read(release, 1)
            os._exit(0 if good(own, "b") else 1)
        os.read(ready, 1)
        assert env.open_environment(cache / "demo").lmdb.reader_check() == 0
        assert str(child) in slots()
        replace_all_elsewhere()
        os.write(released, b"x")
        wait_for(child)
    """)


def test_a_childs_child_reads_too(run_with_store):
    run_with_store("""
        features = store["demo"]["a"]
        child = os.fork()
        if child == 0:
            second = store["demo"]["b"]
            grandchild = os.fork()
            if grandchild == 0:
                assert good(features, "a") and good(second, "b") and good(store["demo"]["c"], "c")
                sys.exit(0)
            wait_for(grandchild)
            assert good(second, "b") and good(store["demo"]["c"], "c")
            sys.exit(0)
        wait_for(child)
        assert good(features, "a")
    """)


def test_a_forked_child_may_write(run_with_store):
    run_with_store("""
        features = store["demo"]["a"]
        child = os.fork()
        if child == 0:
            replace_all(9)
            os._exit(0)
        wait_for(child)
        assert good(features, "a")
        assert np.array_equal(store["demo"]["d"].data, expected(toy_features(9)))
    """)


def test_a_fork_while_other_threads_look_up_leaves_a_child_that_can_read(run_with_store):
    """A lock that another thread held at the fork is never released in the child."""
    run_with_store("""
        stop = threading.Event()
        def hammer():
            while not stop.is_set():
                featstore.open(cache)["demo"]["a"]
        threads = [threading.Thread(target=hammer) for _ in range(3)]
        for thread in threads:
            thread.start()
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # that is what is tried here
        for _ in range(10):
            child = os.fork()
            if child == 0:
                import faulthandler
                faulthandler.dump_traceback_later(20, exit=True)
                os._exit(0 if good(featstore.open(cache)["demo"]["b"], "b") else 1)
            wait_for(child)
        stop.set()
        for thread in threads:
            thread.join()
    """)


def test_a_worker_of_multiprocessing_reads_whatever_its_start_method(run_with_store, tmp_path):
    script = tmp_path / "workers.py"
    script.write_text(
        textwrap.dedent("""
        import multiprocessing, sys
        import featstore

        def read(name):
            return featstore.get(sys.argv[1], "demo", name).data.tobytes()

        if __name__ == "__main__":
            here = [read(name) for name in "abc"]
            for method in ("fork", "spawn"):
                with multiprocessing.get_context(method).Pool(2) as pool:
                    assert pool.map(read, "abc") == here
    """)
    )
    run_with_store(f"""
        import runpy
        done = subprocess.run([sys.executable, {str(script)!r}, cache], env=python_env())
        assert done.returncode == 0
    """)


def test_threads_share_a_store_and_its_views_while_it_is_closed_and_written(run_with_store):
    run_with_store("""
        wrong, stop = [], threading.Event()
        def read(name):
            try:
                held = [store["demo"][name]]
                for _ in range(300):
                    held.append(store["demo"][name])
                    if not good(held[-1], name):
                        wrong.append(name)
                    if len(held) > 5:
                        held.pop(0)
                    store.close()
                if not all(good(features, name) for features in held):
                    wrong.append(name)
            except BaseException as exc:
                wrong.append(exc)
        def write():
            seed = 10
            while not stop.is_set():
                store_videos(cache, "demo", {"other": toy_features(seed)})
                seed += 1
        threads = [threading.Thread(target=read, args=(name,)) for name in "abcab"]
        writer = threading.Thread(target=write)
        for thread in [*threads, writer]:
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
        writer.join()
        assert wrong == []
    """)


@pytest.mark.parametrize("ending", ["os._exit(0)", "sys.exit(0)"])
@pytest.mark.parametrize("dropping", ["pass", "writer.abort()", "del writer; gc.collect()"])
def test_a_forked_child_is_refused_its_parents_writer_and_leaves_its_transaction_alone(
    run_with_store, ending, dropping
):
    """Its commit was acknowledged, then lost, and another process's view showed another video's bytes."""
    run_with_store(f"""
        from featstore.errors import StoreError
        from featstore.store.rows import Failure
        from featstore.store.writer import FeatureWriter

        def refused(act, *arguments):
            try:
                act(*arguments)
            except StoreError as exc:
                return "the process that forked this one; open a FeatureWriter here" in str(exc)

        writer = FeatureWriter(cache, "demo", min_free=0)
        writer.add_set(spec, origin="toy")
        for waiting in (False, True):
            if waiting:
                put_video(writer, spec, "d", toy_features(9))
            child = os.fork()
            if child == 0:
                assert refused(put_video, writer, spec, "e", toy_features(8))
                assert refused(writer.fail, Failure("f", "/f.mp4", spec.digest, "none", 0.0))
                assert refused(writer.add_set, spec)
                assert refused(writer.commit)
                if waiting:
                    txn = writer._txn
                    assert refused(txn.get, "specs", b"x") and refused(txn.delete, "specs", b"x")
                    assert refused(txn.put, "failures", b"x", b"y") and refused(txn.commit)
                    txn.abort()
                    del txn
                {dropping}
                {ending}
            wait_for(child)
        assert [row.video_id for row in writer.commit()] == ["d"]
        assert set(store["demo"]) == set("abcd")
        replace_all_elsewhere()
        assert np.array_equal(store["demo"]["f"].data, expected(toy_features(14)))
    """)


@pytest.mark.parametrize("raising", [True, False])
def test_a_forked_child_that_leaves_its_parents_block_commits_nothing(run_with_store, raising):
    run_with_store(f"""
        from featstore.store.writer import FeatureWriter
        child = None
        try:
            with FeatureWriter(cache, "demo", min_free=0) as writer:
                put_video(writer, spec, "d", toy_features(9))
                child = os.fork()
                if child == 0 and {raising}:
                    raise KeyError
                if child:
                    wait_for(child)
        except KeyError:
            pass
        if child == 0:
            assert set(store["demo"]) == set("abc")
            sys.exit(0)
        assert set(store["demo"]) == set("abcd")
    """)
