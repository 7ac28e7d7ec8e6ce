"""A short run of tools/drill.py damage, and that the drill sees what it is made to see."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from drill_runner import run_drill
from drills.damage.forked_probes import UNSEEN, Death, ForkedProbes
from drills.damage.probe import Verdict, probe
from drills.damage.stores import DATASET, Journal, Store, make_storages, make_tree

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.hostile


@pytest.fixture(scope="module")
def tree() -> Store:
    return make_tree(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / DATASET).mkdir()
    return tmp_path


def look(folder: Path, store: Store, damaged: bytes, *, write: bool = False) -> Verdict:
    return probe(folder, store, damaged, write=write, say=print)


def test_no_sampled_damage_is_served_or_ends_the_process():
    figures = run_drill("damage", "--sample", 150, "--minutes", 0)
    assert [row["probes"] for row in figures["rows"]] == [150] * 6
    refused = {row["damage"]: row["refused"] for row in figures["rows"]}
    assert all(refused.values()), "nothing was damaged"


@pytest.mark.parametrize("write", [False, True])
def test_a_sound_store_is_right(folder, tree, write):
    for store in (tree, make_storages(0)):
        assert look(folder, store, store.data, write=write) == Verdict.RIGHT


def test_a_flip_in_a_payload_is_refused(folder, tree):
    data = bytearray(tree.data)
    put = tree.journal.puts[next(iter(tree.journal.puts))]
    data[tree.data.index(put.stored.tobytes())] ^= 1
    assert look(folder, tree, bytes(data)) == Verdict.REFUSED


def test_a_flip_where_nothing_lies_is_no_matter(folder, tree):
    data = bytearray(tree.data)
    data[4095] ^= 1
    assert look(folder, tree, bytes(data)) == Verdict.RIGHT


def test_the_drill_sees_features_and_rows_that_nobody_put(folder, tree):
    """The store is sound; the journal says that something else was put."""
    key, put = next(iter(tree.journal.puts.items()))
    other = dataclasses.replace(put, stored=np.zeros_like(put.stored))
    journal = Journal({**tree.journal.puts, key: other}, tree.journal.failures)
    assert look(folder, Store("", tree.data, journal), tree.data) == Verdict.WRONG
    other = dataclasses.replace(put, entry=put.entry._replace(frames=9))
    journal = Journal({**tree.journal.puts, key: other}, tree.journal.failures)
    assert look(folder, Store("", tree.data, journal), tree.data) == Verdict.WRONG_ROW


def test_the_drill_sees_what_is_not_found(folder, tree, monkeypatch):
    """Also if the manifest counts it."""
    key, put = next(iter(tree.journal.puts.items()))
    gone = dataclasses.replace(put, video_id="never put")
    journal = Journal({**tree.journal.puts, (key[0], "never put"): gone}, tree.journal.failures)
    assert look(folder, Store("", tree.data, journal), tree.data) == Verdict.WRONG_ROW
    counted = tree.journal.counts()
    monkeypatch.setattr(Journal, "counts", lambda journal: counted)
    assert look(folder, Store("", tree.data, journal), tree.data) == Verdict.MISSED


def test_the_drill_sees_an_exception_that_is_not_featstores(folder, tree, monkeypatch):
    monkeypatch.setattr("drills.damage.probe.check_dataset", lambda *_: 1 // 0)
    said: list[str] = []
    found = probe(folder, tree, tree.data, write=False, say=said.append)
    assert found == Verdict.UNEXPECTED
    assert "ZeroDivisionError" in said[0]


def test_probes_that_end_or_hang_their_process_are_counted_and_the_rest_goes_on():
    def work(worker: int, index: int) -> int:
        if index == 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        if index == 4:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
            time.sleep(60)
        return index

    probes = ForkedProbes(9, work, workers=2, timeout=0.5)
    probes.run()
    assert list(probes.seen[:]) == [0, 1, 2, UNSEEN, UNSEEN, 5, 6, 7, 8]
    assert sorted(probes.deaths) == [Death(3, signal.SIGSEGV), Death(4, signal.SIGALRM)]
    assert [death.hung for death in sorted(probes.deaths)] == [False, True]
