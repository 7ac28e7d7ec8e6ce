"""What the decode process answers of a file that does not stay as it is."""

from __future__ import annotations

import errno
import os

import av
import pytest

from featstore.decoding import av_file, decord_decoder, worker
from featstore.decoding.video_file import fingerprint
from featstore.preprocessing import ShortestEdgeCrop
from featstore.sampling import Sampling
from featstore.system.processes import Slots

SQUARE = ShortestEdgeCrop(shortest_edge=32, crop_height=32, crop_width=32)
FOUR = Sampling(4)


@pytest.fixture
def answer():
    slots = Slots.create(1, 4 * 32 * 32 * 3)
    setup = worker.DecodeSetup(slots, FOUR, SQUARE, 1 << 30, "auto")
    yield lambda path: worker.answer(worker.DecodeTask(1, str(path), 0), setup)
    slots.close()


def grow(path):
    with path.open("ab") as file:
        file.write(b"the rest of a download")


def exchange(path):
    """Another file takes its name, of the same size and time."""
    found = path.stat()
    other = path.with_name("other")
    other.write_bytes(path.read_bytes()[::-1])
    os.utime(other, ns=(found.st_atime_ns, found.st_mtime_ns))
    other.rename(path)


def write_over(path):
    found = path.stat()
    with path.open("r+b") as file:
        file.write(bytes(16))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1))


@pytest.mark.parametrize("change", [grow, exchange, write_over])
@pytest.mark.parametrize("late", [False, True])
def test_a_file_that_changes_while_it_is_read_is_refused(clips, monkeypatch, answer, change, late):
    """Else old frames would be stored under the new file's fingerprint, and no later ingest would notice."""
    path = clips / "blink.mp4"
    step = "fingerprint" if late else "decode"
    does = getattr(worker, step)

    def change_after(*args, **options):
        found = does(*args, **options)
        change(path)
        return found

    monkeypatch.setattr(worker, step, change_after)
    found = answer(path)
    assert (found.clip, found.source, found.out_of_memory) == (None, None, False)
    assert f"{path} changed while it was read" in found.error
    assert "--retry-failed" in found.error


def test_a_file_that_goes_while_it_is_read_is_refused(clips, monkeypatch, answer):
    path = clips / "blink.mp4"

    def fingerprint_and_remove(name):
        found = fingerprint(name)
        path.unlink()
        return found

    monkeypatch.setattr(worker, "fingerprint", fingerprint_and_remove)
    assert "cannot be opened: No such file" in answer(path).error


def test_a_file_that_stays_is_taken_by_its_content_also_through_a_link(clips, answer):
    link = clips / "link.mp4"
    link.symlink_to(clips / "blink.mp4")
    assert answer(link).source == fingerprint(str(clips / "blink.mp4"))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ImportError("_mask.so: failed to map segment from shared object"),
        OSError("libavcodec.so.58: failed to map segment from shared object"),
        OSError("libavfilter.so.7: cannot map zero-fill pages"),
    ],
)
def test_a_limit_that_is_too_low_is_told_from_a_file_that_cannot_be_read(
    clips, monkeypatch, answer, error
):
    def run_out(*args, **options):
        raise error

    monkeypatch.setattr(worker, "decode", run_out)
    found = answer(clips / "blink.mp4")
    assert (found.out_of_memory, found.error) == (True, "")


@pytest.mark.parametrize(
    "said",
    [
        "Check failed: avcodec_open2(ctx, dec, NULL) >= 0 (-12 vs. 0) ",
        "ERROR opening: Resource temporarily unavailable",
        "std::bad_alloc",
    ],
)
def test_what_a_decoder_says_when_memory_runs_out_is_known(said):
    for error in (RuntimeError(said), MemoryError()):
        with pytest.raises(MemoryError):
            decord_decoder._reason(error)
    for number in (errno.ENOMEM, errno.EAGAIN):
        with pytest.raises(MemoryError):
            av_file.reason(av.FFmpegError(number, "x"))
