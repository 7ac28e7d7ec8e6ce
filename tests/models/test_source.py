"""Where a question's features come from, with a toy encoder: replaced files, and stores that cannot be written."""

from __future__ import annotations

import os
import resource
import shutil
import struct
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from damage import put_raw, read_raw
from decoder_corpus import write_case
from opened import Opened

import featstore
from featstore.decoding import video_file as decoding
from featstore.decoding.video_file import DECODER, identity_of
from featstore.encoders.toy import ToyEncoder
from featstore.errors import (
    DatasetNotFound,
    FeatstoreError,
    FeatureNotFound,
    RecordError,
    StoreDamaged,
    StoreFull,
    StoreLocked,
)
from featstore.integrations.vlmevalkit import video_id
from featstore.models import source
from featstore.models.lookup import FeatureRequest
from featstore.models.source import FeatureSource
from featstore.models.source_options import SourceOptions
from featstore.models.statistics import CacheStatistics
from featstore.pipeline import on_demand
from featstore.records.storage import Storage
from featstore.sampling import Sampling
from featstore.spec import FeatureSpec
from featstore.store.lost import lost_datasets
from featstore.store.maintenance.seal import seal_dataset, unseal_dataset
from featstore.store.manifest import MANIFEST_KEY
from featstore.store.rows import set_key, video_key

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_children")]


class Encoder(ToyEncoder):
    """The toy encoder, giving tensors as LongVA's does."""

    def encode(self, frames):
        return torch.from_numpy(super().encode(frames))


SPEC = FeatureSpec(Encoder().identity, Sampling(4), DECODER, Encoder().preprocessing)
EXACT = Storage("fp32")
SHOWN = replace(SPEC, decoder=identity_of("exact"))


@pytest.fixture
def model(cache):
    """Build sources on `cache` unless said otherwise."""
    built = []

    def build(
        cache_dir=cache, on_miss="encode", storage=EXACT, decoder="auto", dtype=torch.float32
    ):
        built.append(
            FeatureSource(
                Encoder(),
                SourceOptions(cache_dir, on_miss, decoder, 60, storage),
                device=torch.device("cpu"),
                dtype=dtype,
                statistics=CacheStatistics(),
            )
        )
        return built[-1]

    yield build
    for each in built:
        each.close()


def ask(asked: FeatureSource, path: Path | str | None, video="blink", dataset="demo", spec=SPEC):
    path = None if path is None else str(path)
    return asked.get(FeatureRequest(dataset, video, path, spec)).load()


def counts(asked: FeatureSource) -> tuple[int, int]:
    return asked._statistics.hits, asked._statistics.misses


@pytest.fixture
def uncached(model):
    return lambda path: ask(model(cache_dir=None), path)


@pytest.fixture
def twins(clips):
    """Two clips of equal size, made so by boxes that players skip."""
    paths = [clips / "blink.mp4", clips / "color_bars.mp4"]
    size = max(path.stat().st_size for path in paths) + 8
    for path in paths:
        room = size - path.stat().st_size
        with path.open("ab") as file:
            file.write(struct.pack(">I4s", room, b"free") + bytes(room - 8))
    return paths


@pytest.fixture
def read(monkeypatch):
    """The files whose content was compared."""
    paths = []
    real = decoding.fingerprint

    def fingerprint(path):
        paths.append(path)
        return real(path)

    monkeypatch.setattr(decoding, "fingerprint", fingerprint)
    return paths


# Sets and how they are stored


def stored_as(cache, video) -> Storage:
    return featstore.get(cache, "demo", video).header.storage


def test_a_model_s_wish_decides_how_a_set_is_stored_that_it_makes(model, clips, cache):
    asked = model(storage=Storage("int8", "token"))
    ask(asked, clips / "blink.mp4")
    assert asked._statistics.bytes_read == 16 * 8 + 16 * 4, "values and scales"
    ask(model(storage=Storage("bf16")), clips / "color_bars.mp4", video="bars")
    ask(model(storage=None), clips / "bouncing_ball.mp4", video="ball")
    for video in ("blink", "bars", "ball"):
        assert stored_as(cache, video) == Storage("int8", "token")
    assert featstore.open(cache)["demo"].feature_set.storage == Storage("int8", "token")


def test_without_a_wish_a_set_is_stored_as_by_default(model, clips, cache):
    ask(model(storage=None), clips / "blink.mp4")
    assert stored_as(cache, "blink") == Storage()


def test_a_set_that_a_model_makes_names_the_parts_of_its_encoder_and_any_video(
    model, clips, cache, monkeypatch
):
    asked, video = model(), os.fsdecode(b"\xff.mp4")
    monkeypatch.setattr(asked._encoder, "names", {"vision_tower": "clip"})
    assert len(ask(asked, clips / "blink.mp4", video=video)) == 16
    dataset = featstore.open(cache)["demo"]
    assert dataset.feature_set.names == {"vision_tower": "clip"}
    assert list(dataset) == [video]


def test_what_is_stored_says_its_rows_and_is_known_again(model, clips):
    request = FeatureRequest("demo", "blink", str(clips / "blink.mp4"), SPEC)
    other = FeatureRequest("demo", "bars", str(clips / "color_bars.mp4"), SPEC)
    stored, again, another = (model().get(asked) for asked in (request, request, other))
    unstored = model(cache_dir=None).get(request)
    assert [found.rows for found in (stored, again, another, unstored)] == [16] * 4
    assert stored.identity == again.identity != another.identity
    assert unstored.identity is None
    assert torch.equal(unstored.load(), again.load())
    half = model(cache_dir=None, dtype=torch.float16).get(request).load()
    assert torch.equal(half, again.load().half())


def test_a_cache_that_is_gone_when_a_model_ends_costs_nothing(model, clips, cache):
    asked = model()
    ask(asked, clips / "blink.mp4")
    shutil.rmtree(cache)
    asked.close()
    assert not cache.exists()


def test_a_set_that_another_process_makes_in_the_meantime_is_followed(
    model, clips, cache, monkeypatch
):
    real, late = on_demand._set_there, []

    def then_make(*place):
        found = real(*place)
        if not late:
            late.append(found)
            ask(model(storage=Storage("fp16")), clips / "color_bars.mp4", video="bars")
        return found

    monkeypatch.setattr(on_demand, "_set_there", then_make)
    ask(model(), clips / "blink.mp4")
    assert late == [None]
    assert stored_as(cache, "bars") == stored_as(cache, "blink") == Storage("fp16")


def test_a_miss_at_another_nframe_changes_nothing_for_anybody_else(model, clips, cache):
    asked, longer = model(), replace(SPEC, sampling=Sampling(6))
    ask(asked, clips / "blink.mp4")
    dataset = featstore.open(cache)["demo"]
    for video in ("blink", "bars"):
        clip = {"blink": "blink", "bars": "color_bars"}[video]
        assert len(ask(asked, clips / f"{clip}.mp4", video=video, spec=longer)) == 6 * 4
    assert list(dataset) == ["blink"]
    assert "bars" not in dataset
    assert dataset["blink"].header.spec == featstore.get(cache, "demo", "blink").header.spec
    assert dataset["blink"].header.spec == SPEC.digest
    assert sorted(dataset.sets[longer.digest]) == ["bars", "blink"]


# Words and paths


def test_what_steers_a_terminal_is_not_sent_by_a_model(model, clips, capsys):
    first, path = clips / "color_bars.mp4", clips / "b\x1b]0;owned\x07\u202e.mp4"
    (clips / "blink.mp4").rename(path)
    asked = model()
    ask(asked, first)
    ask(asked, path)
    said = capsys.readouterr().err
    assert r"b\x1b]0;owned\x07\u202e.mp4 is not the file" in said
    assert all(character.isprintable() or character == "\n" for character in said)


@pytest.mark.parametrize("stderr", [None, "/dev/full"])
def test_an_answer_is_not_lost_to_what_cannot_be_said(model, clips, monkeypatch, capsys, stderr):
    asked = model()
    ask(asked, clips / "color_bars.mp4")
    with open("/dev/null" if stderr is None else stderr, "w") as file:
        monkeypatch.setattr("sys.stderr", None if stderr is None else file)
        assert len(ask(asked, clips / "blink.mp4"))
        monkeypatch.undo()
        with suppress(OSError):
            file.close()
    assert capsys.readouterr().out == ""


def test_a_relative_cache_and_path_mean_the_same_after_a_chdir(model, clips, cache, monkeypatch):
    monkeypatch.chdir(clips.parent)
    asked = model(cache_dir=cache.name)
    ask(asked, "clips/blink.mp4")
    stored = featstore.get(cache, "demo", "blink").header
    assert stored.video_path == str(clips / "blink.mp4")
    monkeypatch.chdir("/")
    ask(asked, None)
    ask(asked, clips / "color_bars.mp4", video="bars")
    assert sorted(featstore.open(cache)["demo"]) == ["bars", "blink"]
    assert counts(asked) == (1, 2)


def test_a_process_without_descriptors_is_told_of_ulimit(model, clips):
    asked = model(cache_dir=None)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    at = max(map(int, os.listdir("/proc/self/fd"))) + 1
    held = [os.dup(0) for _ in range(at)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(held) + 1, hard))
        with pytest.raises(FeatstoreError, match=r"files open as it may, \d+; .*ulimit -n"):
            ask(asked, clips / "blink.mp4")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)
    assert len(ask(asked, clips / "blink.mp4"))


# Replaced files


def test_a_replaced_file_is_encoded_again_and_named(model, clips, uncached, capsys):
    path = clips / "blink.mp4"
    ask(model(), path)
    shutil.copy(clips / "color_bars.mp4", path)
    asked = model()
    for _ in range(2):
        assert ask(asked, path).equal(uncached(path))
    assert counts(asked) == (1, 1)
    err = capsys.readouterr().err
    assert err.count(f"{path} is not the file") == 1
    assert "made again" in err


def test_a_file_of_the_same_size_is_told_by_its_content(model, twins, uncached):
    blink, bars = twins
    ask(model(), blink)
    os.utime(bars, ns=(1, 1))
    shutil.copy2(bars, blink)
    asked = model()
    assert ask(asked, blink).equal(uncached(blink))
    assert counts(asked) == (0, 1)


def test_files_of_one_size_and_time_are_told_by_their_content_too(model, twins, uncached):
    """Archives give all files one time."""
    for path in twins:
        os.utime(path, (1, 1))
    asked = model()
    for path in twins:
        assert ask(asked, path).equal(uncached(path))
    assert counts(asked) == (0, 2)


def test_two_files_of_one_id_get_the_features_of_their_own(model, clips, uncached):
    paths = [clips / "clevr" / name for name in ("ego.mp4", "ego.webm")]
    paths[0].parent.mkdir()
    for path, clip in zip(paths, ("blink", "color_bars"), strict=True):
        shutil.copy(clips / f"{clip}.mp4", path)
    ids = {video_id("D", path) for path in paths}
    assert len(ids) == 1
    asked = model()
    for path in [*paths, *paths]:
        assert ask(asked, path, video=min(ids)).equal(uncached(path))


def test_a_replaced_file_under_error_is_an_error_and_under_encode_only_not_stored(
    model, clips, uncached
):
    path = clips / "blink.mp4"
    stored = ask(model(), path)
    shutil.copy(clips / "color_bars.mp4", path)
    strict = model(on_miss="error")
    with pytest.raises(FeatureNotFound, match=r"blink\.mp4 is not the file.*ingest it again"):
        ask(strict, path)
    assert counts(strict) == (0, 1)
    passing = model(on_miss="encode-only")
    assert ask(passing, path).equal(uncached(path))
    assert counts(passing) == (0, 1)
    assert ask(strict, None).equal(stored)


@pytest.mark.parametrize("path", ["/nowhere/blink.mp4", "null\0byte", "x" * 5000, "\ud800", None])
def test_features_shipped_without_their_file_are_a_hit(model, clips, path):
    stored = ask(model(), clips / "blink.mp4")
    asked = model(on_miss="error")
    assert ask(asked, path).equal(stored)


def test_a_folder_where_the_file_was_is_refused_as_without_a_store(model, clips):
    path = clips / "blink.mp4"
    ask(model(), path)
    path.unlink()
    path.mkdir()
    for cache_dir in ({}, {"cache_dir": None}):
        with pytest.raises(featstore.VideoError, match="is a folder"):
            ask(model(**cache_dir), path)


def test_a_hit_opens_no_video_whose_size_and_time_are_those_stored(model, clips):
    ask(model(), clips / "blink.mp4")
    opened = Opened([clips])
    try:
        asked = model(on_miss="error")
        for _ in range(2):
            ask(asked, clips / "blink.mp4")
        assert opened.files() == set()
        os.utime(clips / "blink.mp4", (1, 1))
        ask(asked, clips / "blink.mp4")
        assert opened.files() == {clips / "blink.mp4"}
    finally:
        opened.close()


def test_a_touched_files_content_is_compared_once_in_each_state(model, clips, read):
    path = clips / "blink.mp4"
    ask(model(), path)
    for expected in (1, 2):
        os.utime(path, (expected, expected))
        for _ in range(2):
            ask(model(on_miss="error"), path)
        assert read == [str(path)] * expected
    shutil.copyfile(clips / "color_bars.mp4", path)  # another size: no need to read it
    with pytest.raises(FeatureNotFound):
        ask(model(on_miss="error"), path)
    assert len(read) == 2


# Whose frames


@pytest.fixture
def doubtful(tmp_path):
    """A video of which decord gives other frames from one run to the next."""
    return write_case("mpeg4_b.avi", tmp_path)


def test_a_model_s_decoder_encodes_what_is_missing_into_a_set_of_its_own(model, cache, doubtful):
    with pytest.raises(featstore.VideoError, match="--decoder exact"):
        ask(model(), doubtful)
    made = ask(model(decoder="exact"), doubtful, spec=SHOWN)
    [found] = featstore.open(cache)["demo"].sets.rows()
    assert found.spec == SHOWN
    assert torch.equal(ask(model(decoder="exact", on_miss="error"), None, spec=SHOWN), made)


def test_features_of_the_other_decoder_do_not_serve_and_its_option_is_named(model, clips, capsys):
    path = clips / "blink.mp4"
    ask(model(decoder="exact"), path, spec=SHOWN)
    with pytest.raises(featstore.StoreMismatch) as refused:
        ask(model(on_miss="error"), path)
    differs = "decoder: stored pyav-presentation, asked for decord-rgb24"
    option = "of other frames: decoder='exact', --decoder exact"
    said = [
        differs,
        "make them beside it, in Python: featstore.ingest(",
        f"or read what is stored, {option}",
    ]
    assert all(sentence in str(refused.value) for sentence in said)
    follows = {
        "encode-only": "they are made for this question only",
        "encode": f"they are made and stored as set {SPEC.digest[:8]}",
    }
    for on_miss, sentence in follows.items():
        capsys.readouterr()
        asked = model(on_miss=on_miss)
        ask(asked, path)
        assert counts(asked) == (0, 1)
        shown = capsys.readouterr().err
        assert differs in shown
        assert "beside it" not in shown
        last = shown.splitlines()[-1]
        assert last.startswith(sentence)
        assert "is read with decoder='exact', --decoder exact" in last
    asked = model(decoder="exact")
    ask(asked, path, spec=SHOWN)
    assert (counts(asked), capsys.readouterr().err) == ((1, 0), "")


# Stores that cannot be written


def sealed_beside(cache: Path, clips: Path, model) -> Path:
    """`demo` and `other`, both with another video than blink, `demo` sealed."""
    for dataset in ("demo", "other"):
        ask(model(), clips / "color_bars.mp4", "color_bars", dataset)
    seal_dataset(cache, "demo")
    return cache


def test_a_sealed_dataset_is_not_written_until_it_is_unsealed(model, clips, cache, capsys):
    sealed_beside(cache, clips, model)
    asked = model()
    for _ in range(2):
        for dataset in ("demo", "other", "new"):
            ask(asked, clips / "blink.mp4", dataset=dataset)
    assert counts(asked) == (2, 4)
    store = featstore.open(cache)
    assert ["blink" in store[name] for name in ("demo", "other", "new")] == [False, True, True]
    err = capsys.readouterr().err
    assert err.count("but not stored") == err.count("is sealed") == 1
    assert str(cache / "demo") in err
    unseal_dataset(cache, "demo")
    ask(asked, clips / "blink.mp4")
    assert "blink" in store["demo"]


def test_a_datasets_folder_that_cannot_be_made_hinders_storing_in_it_alone(
    model, clips, cache, capsys
):
    cache.mkdir()
    (cache / "demo").touch()
    asked = model()
    for dataset in ("demo", "other"):
        ask(asked, clips / "blink.mp4", dataset=dataset)
    assert list(featstore.open(cache)) == ["other"]
    assert capsys.readouterr().err.count("but not stored") == 1


@pytest.mark.parametrize("cause", ["full", "no folder"])
def test_a_full_disk_or_no_cache_folder_is_told_once_for_all(
    model, clips, cache, monkeypatch, capsys, cause
):
    def full(*args, **options):
        raise StoreFull("the disk is full")

    if cause == "full":
        monkeypatch.setattr(source, "store_features", full)
    else:
        cache = clips / "blink.mp4" / "cache"
    asked = model(cache)
    for dataset in ("demo", "other"):
        ask(asked, clips / "blink.mp4", dataset=dataset)
    assert counts(asked) == (0, 2)
    assert capsys.readouterr().err.count("but not stored") == 1


def test_a_full_disk_is_tried_again_and_a_dataset_that_another_holds_is_not(
    model, clips, cache, monkeypatch
):
    raised = [StoreFull("3 GB are free"), StoreFull("2 GB are free")]
    real = source.store_features

    def store(*args, **options):
        if raised:
            raise raised.pop(0)
        return real(*args, **options)

    monkeypatch.setattr(source, "store_features", store)
    asked = model()
    for _ in range(3):
        ask(asked, clips / "blink.mp4")
    assert "blink" in featstore.open(cache)["demo"]
    raised.append(StoreLocked("another writes"))
    for video in ("bars", "ball"):
        ask(asked, clips / "color_bars.mp4", video=video)
    assert list(featstore.open(cache)["demo"]) == ["blink"]


def flip_record(cache, video):
    key = video_key(SPEC.digest, video)
    record = bytearray(read_raw(cache, "records", key))
    record[100] ^= 1
    put_raw(cache, "records", key, bytes(record))


@pytest.mark.parametrize("on_miss", ["encode", "encode-only"])
@pytest.mark.parametrize("table", ["manifest", "specs"])
def test_a_damaged_row_costs_no_answer_and_is_told_once(
    model, clips, uncached, tmp_path, capsys, on_miss, table
):
    path, cache = clips / "blink.mp4", tmp_path / "damaged"
    ask(model(cache), path)
    key = MANIFEST_KEY if table == "manifest" else set_key(SPEC.digest)
    put_raw(cache, table, key, read_raw(cache, table, key)[:-1])
    asked = model(cache, on_miss)
    capsys.readouterr()
    for _ in range(2):
        assert ask(asked, path).equal(uncached(path))
    assert counts(asked) == (0, 2)
    [told] = capsys.readouterr().err.splitlines()
    assert "dataset 'demo': " in told
    assert "cannot be read" in told
    assert "featstore check" in told
    assert told.endswith("; the video's features are made for this question only")
    with pytest.raises(StoreDamaged):
        ask(asked, None)


def test_a_damaged_record_is_made_again_if_that_can_be_and_named_if_not(
    model, clips, cache, capsys
):
    path = clips / "blink.mp4"
    stored = ask(model(), path)
    flip_record(cache, "blink")
    capsys.readouterr()
    for on_miss in ("encode", "encode-only", "error"):
        asked = model(on_miss=on_miss)
        with pytest.raises(RecordError, match=r"header is damaged.*ingest the video again$"):
            ask(asked, None)
        assert (counts(asked), capsys.readouterr().err) == ((0, 1), "")
    ask(model(on_miss="encode-only"), path)
    told = capsys.readouterr().err
    assert "ingest the video again; the video's features are made for this question only" in told
    assert ask(model(), path).equal(stored)
    told = capsys.readouterr().err
    assert told.endswith("; the video's features are made again\n")
    assert "ingest" not in told
    assert ask(model(on_miss="error"), None).equal(stored)


def test_nothing_is_said_to_be_made_of_what_cannot_be(model, clips, capsys):
    path = clips / "blink.mp4"
    ask(model(), path)
    path.unlink()
    path.mkdir()
    capsys.readouterr()
    with pytest.raises(featstore.VideoError, match="is a folder"):
        ask(model(), path)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("on_miss", ["encode", "encode-only"])
def test_a_lost_dataset_is_told_and_not_made_again(model, clips, uncached, cache, capsys, on_miss):
    path = clips / "blink.mp4"
    asked = model(on_miss=on_miss)
    ask(model(), path)
    ask(asked, path)
    lost = cache / "demo" / "data.mdb"
    kept = lost.rename(cache / "kept")
    capsys.readouterr()
    for _ in range(2):
        assert ask(asked, path).equal(uncached(path))
    assert counts(asked) == (1, 2)
    told = capsys.readouterr().err
    assert told.count("demo/data.mdb is gone; restore it from a copy") == 1
    assert told.endswith("the video's features are made for this question only\n")
    assert list(lost_datasets(cache)) == ["demo"]
    with pytest.raises(DatasetNotFound, match=r"is gone"):
        ask(asked, None)
    kept.rename(lost)
    ask(asked, path)
    assert counts(asked) == (2, 3)


def test_a_dataset_that_a_miss_makes_is_told_with_those_there_are(model, clips, cache, capsys):
    ask(model(), clips / "blink.mp4")
    capsys.readouterr()
    asked = model()
    for clip in ("blink", "color_bars"):
        ask(asked, clips / f"{clip}.mp4", video=clip, dataset="dmeo")
    assert capsys.readouterr().err == (
        f"featstore: there is no dataset 'dmeo' in {cache}; did you mean 'demo'? the datasets there are: demo\n"
        f"they are made and stored as set {SPEC.digest[:8]}\n"
    )


def test_videos_as_another_decoder_reads_them_are_told_of_once(model, clips, capsys):
    exact = model(decoder="exact")
    ask(model(), clips / "bouncing_ball.mp4", video="ball")
    for clip in ("blink", "color_bars"):
        ask(exact, clips / f"{clip}.mp4", video=clip, spec=SHOWN)
    capsys.readouterr()
    asked = model()
    for clip in ("blink", "color_bars"):
        ask(asked, clips / f"{clip}.mp4", video=clip)
    assert counts(asked) == (0, 2)
    told = capsys.readouterr().err
    assert told.count("decoder='exact', --decoder exact") == 1
    assert told.endswith(f"they are made and stored as set {SPEC.digest[:8]}\n")
