"""Encoders beside the loop: in a thread, or several in a process each."""

import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
from toys import children_of

import featstore
from featstore.decoding import worker
from featstore.encoders.registry import EncoderRecipe
from featstore.encoders.toy import ToyEncoder
from featstore.errors import FeatstoreError, StoreMismatch
from featstore.pipeline.encode import encoder_workers
from featstore.pipeline.ingest import ingest
from featstore.pipeline.options import IngestOptions
from featstore.pipeline.write import writer_process
from featstore.sampling import Sampling

pytestmark = pytest.mark.slow

SIX = Sampling(6)
COUNT = 12
TWO = [EncoderRecipe("toy"), EncoderRecipe("toy")]


@pytest.fixture
def many(sample_clips: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(COUNT):
        shutil.copy(sample_clips / "blink.mp4", folder / f"v{i:02}.mp4")
    return folder


def payloads(cache: Path) -> dict[str, bytes]:
    dataset = featstore.open(cache)["demo"]
    return {name: f.data.tobytes() + b"".join(map(bytes, f.scales)) for name, f in dataset.items()}


def words(**options) -> dict:
    return {"sampling": SIX, "options": IngestOptions(min_free=1 << 20, **options)}


@pytest.mark.parametrize("batch", [1, 4, 32])
def test_batches_filled_across_videos_store_what_each_video_alone_gives(clips, tmp_path, batch):
    """ToyEncoder's features of a frame are the same in every batch; a network's differ by the noise of floats."""
    for name, size in (("alone", 6), ("shared", batch)):
        encoder = ToyEncoder()
        encoder.batch_frames = size
        ingest(clips, tmp_path / name, "demo", encoder=encoder, **words())
    assert payloads(tmp_path / "shared") == payloads(tmp_path / "alone")


def test_a_batch_holds_frames_of_several_videos(many, cache):
    sizes = []

    class Watched(ToyEncoder):
        def encode(self, frames):
            sizes.append(len(frames))
            return super().encode(frames)

    encoder = Watched()
    encoder.batch_frames = 12
    ingest(many, cache, "demo", encoder=encoder, **words(workers=2))
    assert sum(sizes) == COUNT * 6
    assert max(sizes) <= 12


def test_two_processes_store_what_one_thread_does(many, tmp_path):
    ingest(many, tmp_path / "one", "demo", encoder=ToyEncoder(), **words())
    summary = ingest(many, tmp_path / "two", "demo", encoder=TWO, **words())
    assert (summary.stored, summary.encoders) == (COUNT, 2)
    assert payloads(tmp_path / "two") == payloads(tmp_path / "one")
    assert set(summary.to_dict()["shares"]) == {"decode", "encode", "write"}
    assert summary.bottleneck in summary.shares


def test_more_devices_than_videos_start_no_more_processes_than_there_is_work(clips, cache):
    assert ingest(clips, cache, "demo", encoder=TWO * 3, **words(limit=1)).encoders == 1


def test_encoders_that_differ_are_refused_and_the_difference_is_named(many, cache):
    other = EncoderRecipe("toy", {"seed": 1})
    with pytest.raises(StoreMismatch, match=r"toy has encoder\.weights .*, the first one has"):
        ingest(many, cache, "demo", encoder=[TWO[0], other], **words())


def test_an_encoder_that_cannot_be_built_is_reported_by_its_process(many, cache, tmp_path):
    recipe = EncoderRecipe("longva", {"checkpoint": str(tmp_path), "device": "cpu"})
    with pytest.raises(FeatstoreError, match=r"longva on cpu: .*config\.json"):
        ingest(many, cache, "demo", encoder=[TWO[0], recipe], **words())


def test_a_killed_encoder_process_is_named_and_the_next_run_goes_on(many, cache):
    killed = threading.Event()

    def kill(progress) -> None:
        victims = children_of(os.getpid(), encoder_workers.MODULE)
        if progress.done and victims and not killed.is_set():
            killed.set()
            os.kill(victims[0], signal.SIGKILL)

    with pytest.raises(FeatstoreError, match=r"encoder process \(toy\) died, signal SIGKILL"):
        ingest(many, cache, "demo", encoder=TWO, on_progress=kill, **words(workers=1))
    before = payloads(cache)
    assert 0 < len(before) < COUNT
    summary = ingest(many, cache, "demo", encoder=TWO, **words())
    assert summary.stored == COUNT - len(before)
    assert before.items() <= payloads(cache).items()


@pytest.mark.parametrize(
    "kind", [ZeroDivisionError, EOFError, ConnectionResetError, BrokenPipeError]
)
def test_what_an_encoder_raises_reaches_the_caller_as_it_is(many, cache, kind):
    """Also what a pipe would raise whose other end is gone: the encoder may have pipes of its own."""

    class Failing(ToyEncoder):
        def encode(self, frames):
            raise kind("on purpose")

    before = set(threading.enumerate())
    with pytest.raises(kind, match="on purpose"):
        ingest(many, cache, "demo", encoder=Failing(), **words())
    assert set(threading.enumerate()) <= before


def test_an_encoder_whose_features_have_another_shape_is_refused(clips, cache):
    class Short(ToyEncoder):
        def encode(self, frames):
            return super().encode(frames)[:-1]

    with pytest.raises(FeatstoreError, match=r"made features of shape \(\d+, 4, 8\) of \d+ units"):
        ingest(clips, cache, "demo", encoder=Short(), **words())


def test_a_keyboard_interrupt_leaves_no_thread_and_no_process(many, cache):
    def interrupt(progress) -> None:
        if progress.done:
            raise KeyboardInterrupt

    before = set(threading.enumerate())
    for encoder in (ToyEncoder(), TWO):
        with pytest.raises(KeyboardInterrupt):
            ingest(many, cache, "demo", encoder=encoder, on_progress=interrupt, **words(limit=4))
        assert set(threading.enumerate()) <= before
        for module in (encoder_workers.MODULE, writer_process.MODULE, worker.MODULE):
            assert children_of(os.getpid(), module) == []
