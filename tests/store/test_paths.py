"""Paths of a cache: what the system refuses is said with its remedy, and with the folder it is about."""

import errno
import os
from pathlib import Path

import pytest
from toys import store_videos, toy_features

from featstore.errors import StoreError, StoreFull, StoreNotFound
from featstore.store import paths
from featstore.store.paths import because, dataset_names, identify, lmdb_name, make_folder
from featstore.system.file_map import MORE_FILES


def refusal(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("exc", "remedy", "said"),
    [
        (refusal(errno.EACCES), "", "Permission denied"),
        (refusal(errno.EACCES), "ask", "Permission denied; ask"),
        (refusal(errno.EMFILE), "ask", f"Too many open files; {MORE_FILES}"),
        (refusal(errno.ENFILE), "", f"Too many open files in system; {MORE_FILES}"),
        (OSError("a library's own words"), "", "a library's own words"),
    ],
)
def test_a_refusal_is_said_with_its_remedy(exc, remedy, said):
    assert because(exc, remedy) == said


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, StoreFull), (errno.EDQUOT, StoreFull), (errno.EACCES, StoreError)],
)
def test_a_folder_that_cannot_be_made_tells_a_full_disk(tmp_path, monkeypatch, number, kind):
    def refuse(path: Path) -> None:
        raise refusal(number)

    monkeypatch.setattr(paths, "make_durable_folder", refuse)
    with pytest.raises(kind, match=f"{tmp_path} cannot be made: .*choose another") as raised:
        make_folder(tmp_path)
    assert type(raised.value) is kind


def test_a_folder_that_may_not_be_entered_is_named_or_left_out(cache, monkeypatch):
    for name in ("closed", "demo"):
        store_videos(cache, name, {"a": toy_features(1)})
    real = os.stat

    def refuse(path, **options):
        if isinstance(path, (str, Path)) and "closed" in str(path):
            raise refusal(errno.EACCES)
        return real(path, **options)

    monkeypatch.setattr(os, "stat", refuse)
    assert dataset_names(cache) == ["demo"]
    with pytest.raises(StoreError, match=f"^{cache}/closed cannot be looked into: Permission"):
        identify(cache / "closed" / "data.mdb")


def test_a_folder_is_named_as_py_lmdb_can_open_it(tmp_path):
    with lmdb_name(tmp_path) as name:
        assert name == str(tmp_path)
    odd = tmp_path / os.fsdecode(b"\xff")
    with pytest.raises(StoreNotFound, match="there is no folder"), lmdb_name(odd):
        pass
    odd.mkdir()
    with lmdb_name(odd) as name:
        assert os.path.samefile(name, odd)
        name.encode()
    odd.rmdir()
    odd.touch()
    with pytest.raises(StoreError, match="cannot be opened: Not a directory"), lmdb_name(odd):
        pass
