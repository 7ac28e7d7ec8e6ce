"""A dataset whose file is gone is told of, until it is back or removed on purpose."""

import json
import os
import shutil
import tempfile

import numpy as np
import pytest
from click.testing import CliRunner
from toys import run_python, store_videos, toy_features

import featstore
from featstore.cli import main
from featstore.errors import DatasetNotFound, StoreMismatch, StoreNotFound
from featstore.store.describe import write_cache_meta
from featstore.store.engine.locks import ingest_lock, single_flight_lock
from featstore.store.lost import lost_datasets
from featstore.store.maintenance.remove import remove_dataset
from featstore.store.maintenance.seal import seal_dataset

A = toy_features(1)
GONE = "the dataset 'demo' was in "


def run(command, cache, *words, **options):
    return CliRunner().invoke(main, [command, "--cache-dir", str(cache), *words], **options)


def lose_file(cache):
    (cache / "demo" / "data.mdb").unlink()


def lose_all_but_the_seal(cache):
    seal_dataset(cache, "demo")
    for path in (cache / "demo").iterdir():
        if path.name != "sealed":
            path.unlink()
    (cache / "cache_meta.json").unlink()


def lose_folder(cache):
    shutil.rmtree(cache / "demo")


def put_a_fifo_in_its_place(cache):
    lose_file(cache)
    os.mkfifo(cache / "demo" / "data.mdb")


def break_the_link_to_it(cache):
    lose_folder(cache)
    (cache / "demo").symlink_to(cache / "unmounted")


LOSSES = [
    lose_file,
    lose_all_but_the_seal,
    lose_folder,
    put_a_fifo_in_its_place,
    break_the_link_to_it,
]


@pytest.fixture(params=LOSSES)
def lost(request, cache):
    """A cache of two datasets, one of them lost."""
    store_videos(cache, "demo", {"a": A})
    store_videos(cache, "other", {"a": A})
    write_cache_meta(cache)
    request.param(cache)
    return cache


def test_a_lost_dataset_is_a_problem_to_check(lost):
    for words in ((), ("--dataset", "demo"), ("--repair",)):
        done = run("check", lost, *words)
        assert done.exit_code == 1
        assert GONE in done.stdout
        assert "restore it from a copy" in done.stdout
        assert ("other: 1 video," in done.stdout) == ("--dataset" not in words)
    [report, _] = json.loads(run("check", lost, "--json").stdout)
    assert report["dataset"] == "demo"
    assert len(report["problems"]) == 1


def test_a_lost_dataset_is_listed_with_the_reason(lost):
    for command in ("ls", "info"):
        assert GONE in run(command, lost).stdout
    assert list(featstore.open(lost)) == ["other"]
    remedy = f"{GONE}.* featstore rm --cache-dir .* forgets it|is not a file; put a dataset's own"
    with pytest.raises((DatasetNotFound, StoreMismatch), match=remedy):
        featstore.get(lost, "demo", "a")


def test_it_is_not_forgotten_while_others_are_written(lost):
    if not (lost / "cache_meta.json").exists():
        write_cache_meta(lost)
    for _ in range(2):
        write_cache_meta(lost)
        assert GONE in run("check", lost).stdout


def test_what_is_left_of_it_is_removed_when_asked(lost):
    asked = run("rm", lost, "--dataset", "demo", input="n\n")
    assert asked.exit_code == 1
    assert "Remove what is left of demo" in asked.stderr
    assert run("rm", lost, "--dataset", "demo", "--yes").exit_code == 0
    assert run("check", lost).exit_code == 0
    assert "demo" not in run("ls", lost).stdout
    with pytest.raises(StoreNotFound):
        remove_dataset(lost, "demo")


def test_one_that_is_ingested_again_is_lost_no_more(cache):
    store_videos(cache, "demo", {"a": A})
    lose_file(cache)
    store_videos(cache, "demo", {"b": A})
    assert run("check", cache).exit_code == 0


def test_one_that_never_was_is_not_lost(cache):
    """An ingest that ends early, or a model that cannot store, leaves locks and no file."""
    (cache / "demo").mkdir(parents=True)
    with ingest_lock(cache / "demo"), single_flight_lock(cache / "demo", b"video"):
        pass
    store_videos(cache, "other", {"a": A})
    assert lost_datasets(cache) == {}
    assert run("check", cache).exit_code == 0


@pytest.mark.crash
def test_a_removal_that_is_killed_makes_no_lost_dataset(cache):
    store_videos(cache, "demo", {"a": A})
    store_videos(cache, "other", {"a": A})
    write_cache_meta(cache)
    program = """
import os, signal, sys
from featstore.store.maintenance import remove
remove.sync_dir = lambda path: os.kill(os.getpid(), signal.SIGKILL)
remove.remove_dataset(sys.argv[1], "demo")
"""
    assert run_python(program, cache).returncode == -9
    assert lost_datasets(cache) == {}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"datasets": 7}',
        b'{"datasets": [1]}',
        b'{"datasets": {"../other": {}, "": {}, ".x": {}}}',
    ],
)
def test_a_listing_that_is_none_lists_nothing(cache, content):
    store_videos(cache, "demo", {"a": A})
    (cache / "cache_meta.json").write_bytes(content)
    assert lost_datasets(cache) == {}


def test_a_lost_dataset_names_the_command_that_forgets_it(lost):
    [(name, told)] = lost_datasets(lost).items()
    command = f"featstore rm --cache-dir {lost} --dataset {name}"
    assert told.endswith(f"; was it removed on purpose, {command} forgets it")


def test_a_listing_that_is_a_pipe_is_waited_for_by_nobody(cache):
    store_videos(cache, "demo", {"a": A})
    os.mkfifo(cache / "cache_meta.json")
    assert lost_datasets(cache) == {}


def test_who_had_it_open_is_told_the_same(cache):
    store_videos(cache, "demo", {"a": A})
    store = featstore.open(cache)
    held, dataset = featstore.get(cache, "demo", "a"), store["demo"]
    (cache / "demo" / "data.mdb").rename(cache / "aside")
    for look in (
        lambda: featstore.get(cache, "demo", "a"),
        lambda: store["demo"]["a"],
        lambda: dataset["a"],
        lambda: featstore.Dataset(cache, "demo"),
    ):
        with pytest.raises(DatasetNotFound, match=r"was in .* restore it"):
            look()
    (cache / "aside").rename(cache / "demo" / "data.mdb")
    assert np.array_equal(dataset["a"].data, held.data)


def test_a_folder_under_another_name_is_no_dataset_of_that_name(cache):
    """Nor is its end a loss."""
    store_videos(cache, "demo", {"a": A})
    write_cache_meta(cache)
    shutil.copytree(cache / "demo", cache / "copy")
    for command in ("ls", "info"):
        said = run(command, cache).stdout
        assert "copy: " in said
        assert "holds the dataset 'demo'" in said
        assert said.count("if it is a copy of the folder of that name") == 1
    shutil.rmtree(cache / "copy")
    (cache / "demo").rename(cache / "e")
    assert "; rename it back" in run("info", cache).stdout
    assert run("rm", cache, "--dataset", "demo", "--yes").exit_code == 0
    assert json.loads((cache / "cache_meta.json").read_text())["datasets"] == {}
    (cache / "e").rename(cache / "demo")
    assert run("check", cache).stdout.splitlines()[-1].endswith(": clean")


LOOK_AS_NOBODY = """
import os, sys
from featstore.cli import main
from featstore.store import describe, reader
from featstore.store.maintenance import check, repair
try:
    main(["check", "--cache-dir", sys.argv[1]])
except SystemExit:
    pass
os.setuid(65534)
main([sys.argv[2], "--cache-dir", sys.argv[1]])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to become another user")
def test_a_folder_that_may_not_be_entered_is_named_and_a_problem():
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        store_videos(place, "demo", {"a": A})
        store_videos(place, "open", {"a": A})
        seal_dataset(place, "open")
        os.chmod(f"{place}/demo", 0o700)
        done = run_python(LOOK_AS_NOBODY, place, "check")
        assert done.returncode == 1, done.stderr
        assert "demo may not be entered by this user" in done.stdout
        assert "open: 1 video" in done.stdout
        assert "demo may not be entered" in run_python(LOOK_AS_NOBODY, place, "ls").stdout


def test_the_listing_follows_a_repair_and_a_seal(cache):
    store_videos(cache, "demo", {"a": A})

    def listed():
        return json.loads((cache / "cache_meta.json").read_text())["datasets"]["demo"]

    run("seal", cache, "--dataset", "demo")
    assert listed()["sealed"]
    run("seal", cache, "--dataset", "demo", "--undo")
    assert not listed()["sealed"]
    (cache / "cache_meta.json").unlink()
    run("check", cache, "--repair")
    assert listed()["videos"] == 1
