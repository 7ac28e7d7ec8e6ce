import os
import warnings

import pytest
from toys import store_videos, toy_features

from featstore.errors import StoreError
from featstore.store.maintenance.remove import remove_videos
from featstore.store.reader import FeatureStore, get
from featstore.store.writer import FeatureWriter
from featstore.system import filesystems
from featstore.system.filesystems import NETWORK, OVERRIDE, network_kind

A = toy_features(1)


def line(place: str, kind: str, optional: str = "shared:1 ") -> str:
    return f"36 35 98:0 /root {place} rw,noatime {optional}- {kind} server:/export rw,vers=4.2"


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A mount table that a test may write."""
    file = tmp_path / "mountinfo"
    monkeypatch.setattr(filesystems, "MOUNTS", file)
    monkeypatch.delenv(OVERRIDE, raising=False)
    filesystems._warn.cache_clear()

    def write(*lines: str) -> None:
        file.write_text("\n".join([line("/", "ext4"), *lines]) + "\n", errors="surrogateescape")
        filesystems._network_kind.cache_clear()

    write()
    return write


@pytest.mark.parametrize(
    "kind", sorted(NETWORK | {"fuse", "fuse.sshfs", "fuse.s3fs", "fuse.juicefs", "fuse.anything"})
)
def test_a_network_file_system_is_told_by_its_name(table, kind):
    table(line("/data", kind))
    assert network_kind("/data/cache") == kind
    assert network_kind("/data") == kind
    assert network_kind("/database/cache") is None
    assert network_kind("/home") is None


@pytest.mark.parametrize(
    "kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "fuseblk", "fuse.fuse-overlayfs"]
)
def test_a_local_file_system_is_none(table, kind):
    table(line("/data", kind, optional=""))
    assert network_kind("/data/cache") is None


def test_the_nearest_and_latest_mount_counts(table):
    table(line("/a", "nfs4"), line("/a/b", "ext4"), line("/a/b/c", "nfs4"), line("/a/b/c", "xfs"))
    assert network_kind("/a/x") == "nfs4"
    assert network_kind("/a/b/x") is None
    assert network_kind("/a/b/c/x") is None
    table(line("/", "nfs"))
    assert network_kind("/anywhere") == "nfs"


def test_names_with_spaces_and_links_are_followed(table, tmp_path):
    place = tmp_path / "my share"
    place.mkdir()
    (tmp_path / "link").symlink_to(place)
    table(line(os.path.realpath(place).replace(" ", "\\040"), "cifs"))
    assert network_kind(tmp_path / "link" / "not there yet") == "cifs"


@pytest.mark.parametrize("content", ["", "nonsense", "1 2 3", "a b c d e f\n - x", " - "])
def test_a_table_that_cannot_be_read_tells_nothing(tmp_path, content):
    file = tmp_path / "mountinfo"
    file.write_text(content)
    assert network_kind("/data", file) is None
    assert network_kind("/data", tmp_path / "none") is None


@pytest.mark.filterwarnings("ignore:.*network file system:RuntimeWarning")
def test_nothing_is_written_on_a_network_file_system(table, cache):
    refused = rf"on a network file system \(nfs4\).*local disk.*{OVERRIDE}=1"
    store_videos(cache, "demo", {"a": A})
    table(line(os.path.realpath(cache), "nfs4"))
    for write in (
        lambda: FeatureWriter(cache, "demo"),
        lambda: FeatureWriter(cache, "other"),
        lambda: remove_videos(cache, "demo", ["a"]),
    ):
        with pytest.raises(StoreError, match=refused):
            write()
    assert [path.name for path in cache.iterdir()] == ["demo"]
    table()


def test_reading_warns_once(table, cache):
    store_videos(cache, "demo", {"a": A})
    table(line(os.path.realpath(cache), "lustre"))
    with pytest.warns(
        RuntimeWarning, match=r"on a network file system \(lustre\): reading is slow"
    ):
        assert get(cache, "demo", "a").shape == (16, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(FeatureStore(cache)["demo"]) == ["a"]


def test_who_knows_better_may_write(table, cache, monkeypatch):
    monkeypatch.setenv(OVERRIDE, "1")
    table(line(os.path.realpath(cache), "nfs4"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store_videos(cache, "demo", {"a": A})
        assert get(cache, "demo", "a").shape == (16, 8)


def test_this_machine_has_a_table_that_can_be_read(tmp_path):
    if not filesystems.MOUNTS.exists():
        pytest.skip("no mount table: not Linux")
    network_kind(tmp_path)


@pytest.mark.parametrize(
    ("own", "disk", "nobody_writes"),
    [("rw", "rw", False), ("ro", "rw", False), ("ro", "ro", True), ("ro", "errors=ro,rw", False)],
)
def test_a_disk_is_read_only_where_its_file_system_is(table, own, disk, nobody_writes):
    table(f"36 35 98:0 / /data {own},noatime shared:1 - ext4 /dev/loop0 {disk},discard")
    assert filesystems.is_read_only_disk("/data/cache") == nobody_writes


def test_of_a_disk_of_which_nothing_is_known_nobody_says_it_is_read_only(tmp_path):
    assert not filesystems.is_read_only_disk("/data", tmp_path / "nothing")
