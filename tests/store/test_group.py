"""A cache that the users of one group share: real users, so this takes root."""

import os
import secrets
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from toys import run_python

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("useradd") is None,
        reason="users are made by root, with useradd",
    ),
]

# Everything is imported before the program becomes another user, who may not be allowed to read it. `act` runs a step
# as a user, in a process of its own.
PROGRAM = """
import os, pwd, sys, traceback
from pathlib import Path
import numpy as np
import featstore
from featstore.store.engine.locks import write_lock, single_flight_lock, ingest_lock
from featstore.store import describe
from featstore.store.maintenance import check, compact, merge, remove, repair, seal
from toys import store_videos, toy_features, toy_spec, expected
[getattr(featstore, name) for name in featstore.__all__]

place, users = Path(sys.argv[1]), sys.argv[3:]
cache, other = place / "cache", place / "other"
X = {name: toy_features(ord(name)) for name in "abcdef"}

def ingest(*names):
    cache.mkdir(exist_ok=True)
    (cache / "demo").mkdir(exist_ok=True)
    with ingest_lock(cache / "demo"), single_flight_lock(cache / "demo", b"video"):
        store_videos(cache, "demo", {name: X[name] for name in names})
    describe.write_cache_meta(cache)

def read(*names):
    store = featstore.open(cache)
    assert set(store["demo"]) == set(names), set(store["demo"])
    for name in names:
        assert np.array_equal(store["demo"][name].data, expected(X[name]))
    assert check.check_dataset(cache, "demo").problems == []

def take_over(name):
    store_videos(other, "demo", {name: X[name]})
    assert merge.merge_dataset(other, cache, "demo", min_free=0).stored == 1
    remove.remove_dataset(other, "demo")

def print_error(step):
    try:
        step()
    except OSError as exc:
        print(type(exc).__name__, flush=True)

def act(user, step, *arguments):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            found = pwd.getpwnam(user)
            os.initgroups(user, found.pw_gid)
            os.setgid(found.pw_gid)
            os.setuid(found.pw_uid)
            os.umask(int(sys.argv[2], 8))
            step(*arguments)
            code = 0
        except featstore.FeatstoreError as exc:
            print(f"{type(exc).__name__}: {exc}", flush=True)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0
"""


def as_users(place, umask, users, program):
    done = run_python(PROGRAM + program, place, umask, *users)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def as_user(place, user, step, umask="002"):
    return as_users(place, umask, [user], f"print(act(users[0], {step}))")


@pytest.fixture(scope="module")
def group():
    name = f"fs{secrets.token_hex(4)}"
    subprocess.run(["groupadd", name], check=True)
    yield name
    subprocess.run(["groupdel", name], check=True)


@pytest.fixture(scope="module")
def users(group):
    """Two users of the group and one who is not; the first's own group is another, the second's this."""
    made = [f"{group}{letter}" for letter in "abc"]
    for name, options in zip(made, (["-G", group], ["-N", "-g", group], []), strict=True):
        subprocess.run(["useradd", "-M", *options, name], check=True)
    yield made
    for name in made:
        subprocess.run(["userdel", name], check=True, capture_output=True)


@pytest.fixture
def place(group):
    with tempfile.TemporaryDirectory() as folder:
        shutil.chown(folder, group=group)
        os.chmod(folder, 0o2775)
        yield Path(folder)


TURNS = """
def done(user, step, *arguments, left):
    assert act(user, step, *arguments), (user, step.__name__)
    for reader in users:
        assert act(reader, read, *left), (reader, "reads after", step.__name__)

def turn(user, there, new, merged):
    done(user, ingest, *new, left=there + new)
    done(user, remove.remove_videos, cache, "demo", list(there), left=new)
    done(user, compact.compact_dataset, cache, "demo", left=new)
    done(user, repair.repair_dataset, cache, "demo", left=new)
    done(user, take_over, merged, left=new + merged)
    done(user, remove.remove_videos, cache, "demo", list(new), left=merged)
    done(user, seal.seal_dataset, cache, "demo", left=merged)
    done(user, seal.unseal_dataset, cache, "demo", left=merged)

turn(users[0], "", "a", "b")
turn(users[1], "b", "c", "d")
turn(users[0], "d", "e", "f")
assert act(users[1], remove.remove_dataset, cache, "demo")
"""


@pytest.mark.parametrize("first", [0, 1])
def test_two_users_of_a_group_write_and_read_by_turns(place, users, first):
    as_users(place, "002", [users[first], users[1 - first]], TURNS)


def test_what_is_made_follows_umask_and_setgid_folder(place, users, group):
    assert as_user(place, users[0], 'ingest, "a"', "007") == "True\n"
    assert as_user(place, users[0], 'seal.seal_dataset, cache, "demo"', "007") == "True\n"
    for path in (place / "cache", *(place / "cache").rglob("*")):
        mode = 0o2770 if path.is_dir() else 0o660
        found = path.group(), stat.S_IMODE(path.stat().st_mode)
        assert (path.name, *found) == (path.name, group, mode)


KILLED = """
def die(*words):
    os._exit(0)

def compact_and_die():
    compact.find_page_problems = die
    compact.compact_dataset(cache, "demo")

aside = cache / ".compacting-demo"
assert act(users[0], ingest, "a")
assert act(users[0], compact_and_die)
assert aside.exists()
assert act(users[1], compact.compact_dataset, cache, "demo")
assert not aside.exists()
assert act(users[0], read, "a")
"""


def test_what_a_kill_left_of_ones_compaction_the_other_clears(place, users):
    as_users(place, "002", users[:2], KILLED)


def test_a_user_who_may_only_read_is_told_so_and_reads_what_is_sealed(place, users):
    owner, _, stranger = users
    as_user(place, owner, 'ingest, "a"')
    told = as_user(place, stranger, 'read, "a"')
    assert "LMDB's readers too must write lock.mdb" in told
    assert "ask its owner to seal it" in told
    as_user(place, owner, 'seal.seal_dataset, cache, "demo"')
    assert as_user(place, stranger, 'read, "a"') == "True\n"


WRITES = [
    'ingest, "b"',
    'remove.remove_videos, cache, "demo", ["a"]',
    'compact.compact_dataset, cache, "demo"',
    'repair.repair_dataset, cache, "demo"',
    'seal.seal_dataset, cache, "demo"',
    'write_lock, cache / "demo"',
]


def test_a_user_who_may_only_read_writes_nothing_and_stops_no_writer(place, users):
    owner, _, stranger = users
    as_user(place, owner, 'ingest, "a"')
    told = as_users(place, "002", [stranger], "".join(f"act(users[0], {w})\n" for w in WRITES))
    assert [line.split(":")[0] for line in told.splitlines()] == ["StoreError"] * len(WRITES)
    assert "under umask 002 in a folder with the group's setgid bit" in told
    locks = 'open(cache / "demo" / "write.lock")'
    assert "PermissionError" in as_user(place, stranger, f"lambda: print_error(lambda: {locks})")
