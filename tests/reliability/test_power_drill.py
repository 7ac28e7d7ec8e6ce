"""Some power losses in CI, thousands in the drill; and the disk that is made up loses what it may, and no more."""

import random

import pytest
from drill_runner import run_drill
from drills.power.disk import Disk
from drills.power.write_log import Entry, Kind, compiler

pytestmark = pytest.mark.drill

ROOT = 1


def entry(kind, inode=0, *, offset=0, first=b"", second=b"", durable=False):
    return Entry(kind, durable, inode, offset, first, second)


def made(*entries):
    """A disk with the file /d/a, its name durable, and what `entries` do to it."""
    disk = Disk("/d", ROOT)
    first = [entry(Kind.CREATE, 2, first=b"/d/a"), entry(Kind.SYNC, ROOT)]
    for one in [*first, *entries]:
        disk.apply(one)
    return disk


def contents(disk, name, tmp_path, count=60):
    """What may be found in a file after a power loss, by many of them; None where it is not there."""
    found = set()
    for seed in range(count):
        place = tmp_path / str(seed)
        disk.lose_power(random.Random(seed), place)
        found.add((place / name).read_bytes() if (place / name).exists() else None)
    return found


def test_what_was_synced_is_there_and_what_was_not_may_be(tmp_path):
    write = entry(Kind.WRITE, 2, first=b"x" * 1024)
    assert contents(made(write, entry(Kind.SYNC, 2)), "a", tmp_path / "synced") == {b"x" * 1024}
    found = contents(made(write), "a", tmp_path / "not")
    assert {b"", b"x" * 1024} < found
    assert any(b"\0" in content and b"x" in content for content in found)  # torn


def test_a_durable_write_makes_only_itself_durable(tmp_path):
    older, newer = b"o" * 512, b"n" * 512
    disk = made(
        entry(Kind.WRITE, 2, first=older * 2),
        entry(Kind.WRITE, 2, first=newer, durable=True),
    )
    found = contents(disk, "a", tmp_path)
    assert {content[:512] for content in found} == {newer}
    assert {content[512:] for content in found} >= {b"", older}


def test_a_name_is_there_for_sure_once_its_folder_was_synced(tmp_path):
    moved = entry(Kind.RENAME, first=b"/d/a", second=b"/d/b")
    assert contents(made(moved), "b", tmp_path / "moved") == {b"", None}
    assert contents(made(moved, entry(Kind.SYNC, ROOT)), "b", tmp_path / "synced") == {b""}
    assert contents(made(moved, entry(Kind.SYNC, ROOT)), "a", tmp_path / "gone") == {None}


@pytest.mark.skipif(compiler() is None, reason="no C compiler: the logger cannot be built")
def test_power_losses_lose_nothing_that_was_acknowledged(tmp_path):
    figures = run_drill("power", "--losses", 150, "--steps", 20, "--folder", tmp_path)
    *ours, control = figures["rows"]
    assert all(row["acknowledged"] > 10 for row in ours)
    assert control["lost"] > 0  # a store that does not sync
