"""Whether a file is the one that features were made from."""

from __future__ import annotations

import builtins
import errno
import os
import shutil

import pytest

from featstore.decoding.video_file import fingerprint, was_replaced

SECOND = 1_700_000_000 * 10**9


@pytest.fixture
def file(tmp_path):
    """A file, last changed on a full second."""
    path = tmp_path / "video.mp4"
    path.write_bytes(b"old")
    os.utime(path, ns=(SECOND, SECOND))
    return path


def test_another_content_of_the_same_second_is_another_file(file):
    source = fingerprint(str(file))
    assert not was_replaced(source, str(file))
    file.write_bytes(b"new")
    os.utime(file, ns=(SECOND + 1, SECOND + 1))
    assert was_replaced(source, str(file))


def test_a_content_that_was_compared_is_compared_again_after_a_write_that_keeps_the_time(file):
    """As `cp -p` or rsync leave it: size, time and inode are the same; only the time of the change tells."""
    source = fingerprint(str(file))
    os.utime(file, ns=(SECOND + 1, SECOND + 1))
    assert not was_replaced(source, str(file))  # read, and found equal
    compared = os.stat(file)
    while os.stat(file).st_ctime_ns == compared.st_ctime_ns:  # its clock may be coarse
        with file.open("r+b") as opened:
            opened.write(b"new")
        os.utime(file, ns=(SECOND + 1, SECOND + 1))
    found = os.stat(file)
    assert (found.st_ino, found.st_size) == (compared.st_ino, compared.st_size)
    assert found.st_mtime_ns == compared.st_mtime_ns
    assert was_replaced(source, str(file))


def test_a_content_that_came_back_is_the_file_again(file):
    source = fingerprint(str(file))
    file.write_bytes(b"new")
    os.utime(file, ns=(SECOND + 1, SECOND + 1))
    assert was_replaced(source, str(file))
    file.write_bytes(b"old")
    os.utime(file, ns=(SECOND + 2, SECOND + 2))
    assert not was_replaced(source, str(file))


def test_a_file_of_another_size_or_kind_is_another(file):
    source = fingerprint(str(file))
    file.write_bytes(b"longer")
    os.utime(file, ns=(SECOND, SECOND))
    assert was_replaced(source, str(file))
    file.unlink()
    assert not was_replaced(source, str(file))
    file.mkdir()
    assert was_replaced(source, str(file))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_file_that_cannot_be_read_is_not_called_another(file, monkeypatch, number):
    source = fingerprint(str(file))
    os.utime(file, ns=(SECOND + 1, SECOND + 1))

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", fail)
        with pytest.warns(RuntimeWarning, match=f"{os.strerror(number)}; .* they are kept"):
            assert not was_replaced(source, str(file))


def test_a_file_of_the_same_size_and_time_elsewhere_is_told_by_its_content(file):
    source, path = fingerprint(str(file)), str(file)
    other, copy, link = (file.with_name(name) for name in ("other.mp4", "copy.mp4", "link.mp4"))
    other.write_bytes(bytes(len(file.read_bytes())))
    shutil.copy2(file, copy)
    link.symlink_to(file)
    os.utime(other, ns=(source.mtime_ns, source.mtime_ns))
    assert was_replaced(source, str(other), path)
    assert not was_replaced(source, str(other))
    assert not was_replaced(source, str(copy), path)
    assert not was_replaced(source, str(link), path)
