"""CachedLongVA on the tiny checkpoint: hits, misses and their policies, damage, statistics, images."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toys import run_python

import featstore
from featstore.checkpoints.config_fields import ConfigFields
from featstore.encoders import LongVAEncoder
from featstore.encoders.longva import encoder as longva_encoder
from featstore.errors import (
    CheckpointError,
    DatasetNotFound,
    FeatstoreError,
    FeatureNotFound,
    QuantizeError,
    RecordError,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreMismatch,
    StoreNotFound,
    VideoError,
)
from featstore.models import CachedLongVA, source
from featstore.models.longva.images import Tiling, read_tiling
from featstore.models.statistics import CacheStatistics
from featstore.pipeline import on_demand
from featstore.preprocessing import ShortestEdgeCrop, normalization_table
from featstore.records.storage import GRANULARITIES, Storage
from featstore.sampling import Sampling
from featstore.store.maintenance.check import check_dataset

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread", "quick_children")]

ASK = "What color is the ball?"
NEW = {"max_new_tokens": 8}
PRE = ShortestEdgeCrop(shortest_edge=336, crop_height=336, crop_width=336)


@pytest.fixture
def model(tiny, cache):
    """Build models of four frames a video, the tiny checkpoint's on `cache` unless said otherwise."""
    models = []

    def build(checkpoint=tiny, cache_dir=cache, **options):
        options = {"dataset": "demo", "sampling": Sampling(4), "device": "cpu"} | options
        models.append(CachedLongVA(checkpoint, cache_dir, **options))
        return models[-1]

    yield build
    for built in models:
        built.close()


@pytest.fixture(scope="module")
def made(tiny, sample_clips, tmp_path_factory):
    """A store made by the tiny checkpoint's model on a miss: blink, four frames."""
    folder = tmp_path_factory.mktemp("made") / "cache"
    with CachedLongVA(tiny, folder, dataset="demo", sampling=Sampling(4), device="cpu") as asked:
        asked.generate(ASK, "blink", path=sample_clips / "blink.mp4", **NEW)
    return folder


@pytest.fixture
def stored(made, cache):
    """`cache` with blink in it."""
    return Path(shutil.copytree(made, cache))


@pytest.fixture(scope="module")
def other(make_checkpoint, tmp_path_factory):
    """A checkpoint that sees otherwise."""
    return make_checkpoint(tmp_path_factory.mktemp("other") / "other", seed=1)


@pytest.fixture(scope="module")
def sibling(make_checkpoint, tmp_path_factory):
    """A checkpoint that sees alike and speaks otherwise."""
    return make_checkpoint(
        tmp_path_factory.mktemp("sibling") / "sibling", language_seed=7, shards=2
    )


def sets(cache):
    return featstore.open(cache)["demo"].sets.rows()


def damage(cache, video):
    """Change a byte in the middle of the payload of a stored video."""
    piece = featstore.open(cache)["demo"][video].data.tobytes()[1000:1064]
    with (cache / "demo/data.mdb").open("r+b") as file:
        data = file.read()
        assert data.count(piece) == 1
        file.seek(data.index(piece) + 32)
        file.write(bytes([piece[32] ^ 1]))


# Hits and misses


def test_a_miss_is_stored_and_the_next_question_finds_it(model, clips, cache):
    first = model()
    cold = first.generate_ids(ASK, "blink", path=clips / "blink.mp4", **NEW)
    assert (first.statistics.hits, first.statistics.misses) == (0, 1)
    warm = first.generate_ids(ASK, "blink", path=clips / "blink.mp4", **NEW)
    assert (first.statistics.hits, first.statistics.misses) == (1, 1)
    second = model()
    assert second.generate_ids(ASK, "blink", **NEW) == warm == cold
    assert (second.statistics.hits, second.statistics.misses) == (1, 0)
    entry = next(featstore.open(cache)["demo"].entries())
    assert (entry.video_id, entry.frames) == ("blink", 4)
    assert entry.video_path == str(clips / "blink.mp4")


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_miss_is_answered_from_the_features_as_stored(model, clips, granularity):
    logits = []

    def note(input_ids, scores):
        logits.append(scores.clone())
        return scores

    for _ in ("miss", "hit"):
        model(storage=Storage("int8", granularity), prefix_cache=0).generate(
            ASK, "blink", path=clips / "blink.mp4", logits_processor=[note], max_new_tokens=1
        )
    assert logits[0].equal(logits[1])


def test_a_model_asks_for_the_features_of_its_decoder(model, clips, cache):
    path = clips / "blink.mp4"
    first = model(decoder="exact")
    first.generate(ASK, "blink", path=path, **NEW)
    [found] = sets(cache)
    assert (found.spec.decoder, first.statistics.decoders) == ("pyav-presentation", {"exact"})
    with pytest.raises(StoreMismatch, match=r"decoder: .*\n.*\n.*decoder='exact'"):
        model(on_miss="error").generate(ASK, "blink", **NEW)
    model(on_miss="error", decoder="exact").generate(ASK, "blink", **NEW)


def test_features_that_ingest_stored_serve(model, clips, cache, tiny):
    from featstore.encoders.registry import get_encoder

    encoder = get_encoder("longva", checkpoint=tiny, device="cpu")
    featstore.ingest([clips / "blink.mp4"], cache, "demo", encoder=encoder, sampling=Sampling(4))
    asked = model(on_miss="error")
    asked.generate(ASK, "blink", **NEW)
    assert asked.statistics.hits == 1


@pytest.mark.usefixtures("stored")
def test_a_model_names_the_features_that_it_reads(model):
    asked = model()
    found = asked.feature_set()
    assert (list(found), found.feature_set.spec) == (["blink"], asked.spec)
    assert found["blink"].header.spec == asked.model_signature
    with pytest.raises(StoreMismatch, match="sampling"):
        model(sampling=Sampling(5)).feature_set("demo")
    with pytest.raises(DatasetNotFound):
        asked.feature_set("none")
    with pytest.raises(ValueError, match="no store or no dataset"):
        model(cache_dir=None).feature_set("demo")


@pytest.mark.usefixtures("stored")
def test_stored_features_are_read_without_the_video_or_the_vision_tower(model):
    warm = model()
    warm.generate(ASK, "blink", path="/nowhere/blink.mp4", **NEW)
    assert warm.statistics.hits == 1
    assert warm._encoder._model is None
    assert warm._source.on_demand._pool is None


def test_a_model_that_speaks_otherwise_shares_the_features(model, sibling, stored):
    asked = model(sibling, on_miss="error")
    asked.generate(ASK, "blink", **NEW)
    assert asked.statistics.hits == 1
    assert len(sets(stored)) == 1


def test_a_model_that_sees_otherwise_makes_a_second_set_beside_the_first(
    model, other, clips, stored
):
    first = model(on_miss="error").generate_ids(ASK, "blink", **NEW)
    asked = model(other)
    second = asked.generate_ids(ASK, "blink", path=clips / "blink.mp4", **NEW)
    assert asked.statistics.misses == 1
    assert len(sets(stored)) == 2
    assert model(on_miss="error").generate_ids(ASK, "blink", **NEW) == first
    assert model(other, on_miss="error").generate_ids(ASK, "blink", **NEW) == second


def test_frames_are_the_models_or_the_questions(model, clips, cache):
    asked = model(sampling=Sampling(2))
    for nframe in (None, 3, 2):
        asked.generate(ASK, "blink", path=clips / "blink.mp4", nframe=nframe, **NEW)
    assert (asked.statistics.hits, asked.statistics.misses) == (1, 2)
    assert [found.spec.sampling.nframe for found in sets(cache)] == [2, 3]
    dataset = featstore.open(cache)["demo"]
    assert dataset["blink"].header.nframe == 2  # the first set stays the default
    assert dataset.lookup("blink", nframe=3).header.nframe == 3
    for nframe in ("2", 2.0, True):
        with pytest.raises(ValueError, match=f"nframe is {nframe!r}; it must be an integer"):
            asked.generate(ASK, "blink", path=clips / "blink.mp4", nframe=nframe, **NEW)


def test_the_dataset_is_the_models_or_the_questions(model, clips, cache):
    asked = model()
    asked.generate(ASK, "blink", dataset="other", path=clips / "blink.mp4", **NEW)
    assert list(featstore.open(cache)) == ["other"]
    with pytest.raises(ValueError, match="no dataset is named for video 'blink'"):
        model(dataset=None).generate(ASK, "blink", path=clips / "blink.mp4")


@pytest.mark.usefixtures("bf16_attention")
def test_features_computed_or_stored_otherwise_serve_as_long_as_there_is_no_choice(model, clips):
    path = clips / "blink.mp4"
    model(dtype="bf16", storage=Storage("fp16")).generate(ASK, "blink", path=path, **NEW)
    asked = model()
    asked.generate(ASK, "blink", path=path, **NEW)
    assert (asked.statistics.hits, asked.statistics.misses) == (1, 0)


def test_of_several_dtypes_the_models_own_is_taken(model, clips, cache):
    path = clips / "blink.mp4"
    spec = model().spec
    encoded = model()._source.on_demand.encode(source.Video("blink", str(path)), Sampling(4))

    def store(dtype, values):
        made = replace(spec, encoder=replace(spec.encoder, dtype=dtype))
        on_demand.store_features(encoded, cache, "demo", made, "here", storage=Storage(values))

    store("fp16", "fp16")
    model(on_miss="error").generate(ASK, "blink", **NEW)
    store("bf16", "bf16")
    with pytest.raises(
        StoreMismatch,
        match=r"2 feature sets have video 'blink'.*choose with dtype=:\n.*fp16\n.*bf16",
    ):
        model().generate(ASK, "blink")
    store("fp32", "fp32")
    asked = model()
    asked.generate(ASK, "blink", **NEW)
    header = featstore.get(cache, "demo", "blink", spec=spec).header
    assert asked.statistics.bytes_read == header.raw_bytes == 4 * math.prod(header.shape)


@pytest.mark.usefixtures("bf16_attention")
def test_a_video_missing_from_one_set_is_found_in_another_that_serves(model, clips):
    """A second set beside a full one must not hide what the first holds."""
    blink, bars = clips / "blink.mp4", clips / "color_bars.mp4"
    model(dtype="bf16").generate(ASK, "blink", path=blink, **NEW)
    model().generate(ASK, "color_bars", path=bars, **NEW)
    asked = model(on_miss="error")
    for video in ("blink", "color_bars"):
        asked.generate(ASK, video, **NEW)
    assert asked.statistics.hits == 2


# What becomes of a miss


def test_encode_only_stores_nothing(model, clips, cache):
    asked = model(on_miss="encode-only")
    found = asked.generate_ids(ASK, "blink", path=clips / "blink.mp4", **NEW)
    assert asked.statistics.misses == 1
    assert not cache.exists()
    uncached = model(cache_dir=None, dataset=None)
    assert uncached.generate_ids(ASK, "blink", path=clips / "blink.mp4", **NEW) == found
    assert uncached.statistics.asked == 0


def test_error_says_that_there_is_no_store(model, cache):
    asked = model(on_miss="error")
    with pytest.raises(StoreNotFound, match=r"no dataset 'demo' in .*on_miss=encode"):
        asked.generate(ASK, "blink")
    assert asked.statistics.misses == 1
    assert not cache.exists()


@pytest.mark.usefixtures("stored")
def test_error_says_that_the_video_is_not_stored(model):
    with pytest.raises(FeatureNotFound, match="'color_bars' is not stored"):
        model(on_miss="error").generate(ASK, "color_bars", path="color_bars.mp4")


@pytest.mark.usefixtures("stored")
def test_error_says_what_differs_and_how_to_ingest(model, other, tiny):
    with pytest.raises(StoreMismatch) as refused:
        model(other, on_miss="error").generate(ASK, "blink")
    message = str(refused.value)
    ours, theirs = (model(which).spec.encoder.weights[:40] for which in (tiny, other))
    assert f"encoder.weights: stored {ours}, asked for {theirs}" in message
    assert f"--model-path {other}" in message
    with pytest.raises(StoreMismatch, match=r"sampling\.nframe: stored 4, asked for 5"):
        model(on_miss="error").generate(ASK, "blink", nframe=5)


def test_a_miss_without_a_path_asks_for_one(model):
    for build in (model, lambda: model(cache_dir=None)):
        with pytest.raises(FeatureNotFound, match="no path came with it; pass path="):
            build().generate(ASK, "blink")


def test_a_file_that_is_no_video_is_named_and_the_next_one_is_answered(model, clips, tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    asked = model()
    with pytest.raises(VideoError, match=r"text\.mp4 cannot be opened"):
        asked.generate(ASK, "text", path=text)
    assert asked.generate_ids(ASK, "blink", path=clips / "blink.mp4", **NEW)
    assert asked.statistics.misses == 2


def test_a_decoder_that_hangs_is_killed(model, clips):
    asked = model(decode_timeout=1e-6)
    with pytest.raises(VideoError, match="decoding took longer than 1e-06 s"):
        asked.generate(ASK, "blink", path=clips / "blink.mp4")


def test_a_store_that_is_full_does_not_end_an_evaluation(model, clips, cache, monkeypatch, capsys):
    def full(*args, **options):
        raise StoreFull("the disk is full")

    expected = model(cache_dir=None).generate_ids(ASK, "blink", path=clips / "blink.mp4", **NEW)
    monkeypatch.setattr(source, "store_features", full)
    asked = model()
    for _ in range(2):
        found = asked.generate_ids(ASK, "blink", path=clips / "blink.mp4", **NEW)
        assert found == expected
    assert asked.statistics.misses == 2
    assert capsys.readouterr().err.count("but not stored: the disk is full") == 1


def test_a_store_that_cannot_be_made_does_not_end_an_evaluation(model, clips, tmp_path, capsys):
    (tmp_path / "file").touch()
    asked = model(cache_dir=tmp_path / "file" / "cache")
    for video in ("blink", "color_bars"):
        assert asked.generate_ids(ASK, video, path=clips / f"{video}.mp4", **NEW)
    assert asked.statistics.misses == 2
    assert capsys.readouterr().err.count("cannot be made") == 1


def test_too_little_room_is_full(model, clips, cache):
    asked = model()
    spec = asked.spec
    encoded = asked._source.on_demand.encode(
        source.Video("blink", str(clips / "blink.mp4")), Sampling(4)
    )
    with pytest.raises(StoreFull, match="are to stay free"):
        on_demand.store_features(encoded, cache, "demo", spec, "here", min_free=1 << 60)
    assert check_dataset(cache, "demo").problems == []


def test_features_that_cannot_be_stored_are_used(model, clips, cache, monkeypatch, capsys):
    def overflow(*args, **options):
        raise QuantizeError("3 of 8 values exceed fp16's 65504")

    monkeypatch.setattr(source, "store_features", overflow)
    asked = model()
    assert asked.generate_ids(ASK, "blink", path=clips / "blink.mp4", **NEW)
    assert "65504; its features are used, but not stored" in capsys.readouterr().err


def test_what_a_run_stored_is_described_when_it_closes(model, clips, cache):
    asked = model()
    asked.generate(ASK, "blink", path=clips / "blink.mp4", **NEW)
    assert not (cache / "cache_meta.json").exists()
    asked.close()
    assert json.loads((cache / "cache_meta.json").read_text())["videos"] == 1


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"dataset": "a/b"}, StoreMismatch, "a dataset cannot be called 'a/b'"),
        (
            {"on_miss": "ignore"},
            ValueError,
            "on_miss is 'ignore'; use one of encode, encode-only, error",
        ),
        ({"decoder": "av"}, ValueError, "decoder is 'av'; use one of auto, exact"),
        ({"prefix_cache": -1}, ValueError, "prefix_cache is -1"),
        ({"decode_timeout": 0}, ValueError, "decode_timeout is 0 s; it must be above 0"),
        ({"decode_timeout": math.nan}, ValueError, "decode_timeout is nan s"),
        ({"storage": "fp16"}, ValueError, "storage is 'fp16'; pass a featstore.Storage"),
        ({"attn_implementation": "flash"}, FeatstoreError, "'flash' cannot be used here"),
        ({"cache_dir": __file__}, StoreError, r"test_model\.py is a file; name the folder"),
        ({"device": "banana"}, ValueError, "device is 'banana'"),
        ({"dtype": "int8"}, ValueError, "dtype is 'int8'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_asked_for_is_refused_before_the_checkpoint_is_read(
    model, monkeypatch, options, error, sentence
):
    read = []
    monkeypatch.setattr(
        longva_encoder, "read_checkpoint", lambda *args, **kwargs: read.append(args)
    )
    with pytest.raises(error, match=sentence):
        model(**options)
    assert read == []


def test_unknown_videos_and_options_are_refused(model):
    with pytest.raises(ValueError, match="a video id of 0"):
        model().generate(ASK, "")
    with pytest.raises(ValueError, match="no video is named"):
        model().generate(ASK, path="blink.mp4")
    with pytest.raises(TypeError, match="'max_tokens' is not an option"):
        model().generate(ASK, "blink", max_tokens=5)


# Damage


def test_a_damaged_record_is_reported_once_and_made_again(model, clips, stored, capsys):
    with model(on_miss="error") as undamaged:
        expected = undamaged.generate_ids(ASK, "blink", **NEW)
    damage(stored, "blink")
    asked = model()
    for _ in range(2):
        assert asked.generate_ids(ASK, "blink", path=clips / "blink.mp4", **NEW) == expected
    assert (asked.statistics.hits, asked.statistics.misses) == (1, 1)
    err = capsys.readouterr().err
    assert err.count("the payload of video 'blink' is damaged") == 1
    assert err.count("made again") == 1
    assert check_dataset(stored, "demo").problems == []


def test_a_damaged_record_under_error_is_an_error(model, made, tmp_path):
    cache = shutil.copytree(made, tmp_path / "damaged")
    damage(cache, "blink")
    asked = model(cache_dir=cache, on_miss="error")
    with pytest.raises(RecordError, match="damaged"):
        asked.generate(ASK, "blink")
    assert asked.statistics.misses == 1


def test_a_store_cut_short_is_reported_and_its_features_are_made_again(
    model, clips, made, tmp_path, capsys
):
    cache = shutil.copytree(made, tmp_path / "short")
    with model(cache_dir=cache, on_miss="error") as whole:
        expected = whole.generate_ids(ASK, "blink", **NEW)
    file = cache / "demo" / "data.mdb"
    os.truncate(file, file.stat().st_size // 2)
    with model(cache_dir=cache) as asked:
        for _ in range(2):
            found = asked.generate_ids(ASK, "blink", path=clips / "blink.mp4", **NEW)
            assert len(found) == len(expected)
    err = capsys.readouterr().err
    assert "the file is damaged or was cut short" in err
    assert "made for this question only" in err
    with (
        model(cache_dir=cache, on_miss="error") as strict,
        pytest.raises(StoreDamaged, match="cut short"),
    ):
        strict.generate(ASK, "blink")


# Statistics


def test_the_report_has_the_form_of_the_design_documents():
    asked = CacheStatistics(hits=3, misses=1, bytes_read=1_234_567, seconds_reading=0.25)
    report = str(asked)
    assert repr(asked) == report
    assert report.splitlines() == [
        "Vision Cache Statistics:",
        "  Cache hits: 3",
        "  Cache misses: 1",
        "  Hit rate: 75.0%",
        "  Bytes read: 1,234,567",
        "  Seconds: 0.25 reading, 0.00 encoding, 0.00 generating",
    ]


def test_the_report_names_the_decoders_of_all_its_models():
    one, other = (CacheStatistics(decoders=frozenset({name})) for name in ("exact", "auto"))
    assert str(one).endswith("generating\n  Decoder: exact")
    assert str(one + other + one).endswith("\n  Decoder: auto, exact")
    assert (one + other).to_dict()["decoders"] == ["auto", "exact"]


def run(program):
    done = run_python(f"import logging; logging.basicConfig(level=logging.INFO)\n{program}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return done.stderr


def test_a_process_reports_once_what_all_its_models_asked():
    program = """
from featstore.models.statistics import CacheStatistics, report_at_exit
for hits in (2, 5):
    statistics = CacheStatistics()
    report_at_exit(statistics)
    statistics.hits = hits
statistics.misses = 7
"""
    report = run(program)
    assert report.count("Vision Cache Statistics") == 1
    assert "Cache hits: 7\n  Cache misses: 7\n  Hit rate: 50.0%" in report


def test_a_process_that_asked_for_nothing_reports_nothing():
    program = """
from featstore.models.statistics import CacheStatistics, report_at_exit
report_at_exit(CacheStatistics())
"""
    assert run(program) == ""


def test_a_forked_child_leaves_the_report_to_its_parent():
    program = """
import os, sys
from featstore.models.statistics import CacheStatistics, report_at_exit
report_at_exit(CacheStatistics(hits=1))
child = os.fork()
if child == 0:
    sys.exit()
os.waitpid(child, 0)
"""
    assert run(program).count("Cache hits: 1") == 1


def test_a_forked_child_reports_what_it_asked_itself_and_of_which_decoder():
    program = """
import os, sys
from featstore.models.statistics import CacheStatistics, report_at_exit
statistics = CacheStatistics(hits=1, decoders=frozenset({"exact"}))
report_at_exit(statistics)
child = os.fork()
if child == 0:
    statistics.add(hits=3)
    sys.exit()
os.waitpid(child, 0)
"""
    report = run(program)
    assert [report.count(f"Cache hits: {hits}\n") for hits in (1, 3)] == [1, 1]
    assert report.count("Decoder: exact") == 2


# Text and images


def test_text_alone_needs_no_store(model, cache):
    asked = model(on_miss="error")
    assert asked.generate_ids(ASK, **NEW)
    assert asked.statistics.asked == 0
    assert not cache.exists()


def picture(width: int, height: int) -> Image.Image:
    y, x = np.ogrid[:height, :width]
    colors = np.broadcast_arrays(x * 5 % 256, y * 3 % 256, x * y // 7 % 256)
    return Image.fromarray(np.stack(colors, axis=-1).astype(np.uint8))


GRID = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


@pytest.mark.parametrize(
    ("size", "sha256"),
    [
        ((640, 360), "26f9668cab6f7d4b7e5108d185287beb69d37337848770835ae2c0141c42c28c"),
        ((300, 900), "9c3377814e859ffba503d13a5801f80fb9d1c3a959c885442a73c0098211db49"),
        ((1000, 1000), "a79a1aab15dbe8195a7c902a864083e903f960dca923b79a6912fd881e58634b"),
        ((50, 40), "945ed1146d4d547de7b454c6c44a920d5a8098a048c7d68e2254c372202bb883"),
    ],
)
def test_images_are_cut_as_the_original_cuts_them(size, sha256):
    """The hashes are of what process_anyres_image of LongVA f4c8781 returns, the first tile left out."""
    tiles = Tiling(336, GRID).cut(picture(*size))
    table = normalization_table(PRE)
    pixels = table[tiles, np.arange(3)].transpose(0, 3, 1, 2)
    assert hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest() == sha256


@pytest.mark.parametrize(("mode", "stride"), [("average", 2), ("max", 3), ("average", 1)])
def test_an_images_tiles_are_pooled_by_averages_of_two_by_two_whatever_videos_are(
    model, tiny, altered, mode, stride
):
    """llava_arch.py of LongVA f4c8781, under `unires`: kernel_size = 2, avg_pool2d."""
    asked = model(altered({"mm_spatial_pool_mode": mode, "mm_spatial_pool_stride": stride}))
    tiles = asked._cut(picture(640, 360))
    assert np.array_equal(tiles, Tiling(336, GRID).cut(picture(640, 360)))
    visual = asked._image("an image", tiles)
    assert visual.rows == len(tiles) * 144 == 4 * 144
    average_of_two = LongVAEncoder(tiny, device="cpu")
    assert visual.load().equal(average_of_two.encode(tiles).flatten(0, 1))


def test_a_checkpoint_of_another_pooling_answers_about_a_video_and_an_image(model, clips, altered):
    asked = model(altered({"mm_spatial_pool_mode": "max", "mm_spatial_pool_stride": 3}))
    options = {"path": clips / "blink.mp4", "images": [picture(640, 360)], **NEW}
    assert asked.generate_ids(ASK, "blink", **options)
    assert featstore.get(asked._source._lookup.cache_dir, "demo", "blink").shape == (4 * 64, 128)


def test_images_are_cut_as_the_config_said_when_the_model_was_made(model, altered):
    checkpoint = altered()
    asked = model(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"image_aspect_ratio": "pad"}))
    assert len(asked._cut(picture(640, 360))) == 4


def test_an_image_that_cannot_be_taken_costs_its_question_alone(model, clips, altered, cache):
    asked = model(altered({"mm_patch_merge_type": "flat"}))
    options = {"path": clips / "blink.mp4", **NEW}
    with pytest.raises(CheckpointError, match=r"mm_patch_merge_type = 'flat'.*without the image"):
        asked.generate(ASK, "blink", images=[picture(64, 64)], **options)
    assert (asked.statistics.hits, asked.statistics.misses) == (0, 0)
    assert not cache.exists()  # nothing was looked up, decoded or made
    assert asked.generate_ids(ASK, "blink", **options)


def test_a_relative_checkpoint_means_the_same_after_a_chdir(model, clips, tiny, monkeypatch):
    monkeypatch.chdir(tiny.parent)
    asked = model(
        tiny.name, cache_dir=None, vision_tower=f"{tiny.name}/openai/clip-tiny-patch14-336"
    )
    monkeypatch.chdir("/")
    question = {"path": clips / "blink.mp4", "images": [picture(64, 64)], **NEW}
    again = model(cache_dir=None).generate_ids(ASK, "blink", **question)
    assert asked.generate_ids(ASK, "blink", **question) == again


def test_a_question_about_a_video_and_an_image_is_answered(model, clips, tmp_path):
    asked = model()
    picture(640, 360).save(tmp_path / "picture.png")
    options = {"path": clips / "blink.mp4", "images": [tmp_path / "picture.png"], **NEW}
    both = asked.generate_ids("First <image> then <image>: same?", "blink", **options)
    again = asked.generate_ids("First <image> then <image>: same?", "blink", **options)
    assert both == again
    assert (
        model(prefix_cache=0).generate_ids("First <image> then <image>: same?", "blink", **options)
        == both
    )
    assert asked.generate_ids(ASK, images=[picture(64, 64)], **NEW)


def test_a_file_that_is_no_image_is_named(model, clips):
    with pytest.raises(FeatstoreError, match=r"blink\.mp4 cannot be read as an image"):
        model().generate(ASK, images=[clips / "blink.mp4"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_aspect_ratio", "pad"),
        ("mm_patch_merge_type", "spatial_unpad"),
        ("image_grid_pinpoints", [[336, 300]]),
        ("image_grid_pinpoints", "336"),
        ("image_grid_pinpoints", []),
    ],
)
def test_images_are_refused_where_the_original_would_do_something_else(field, value):
    config = {
        "image_aspect_ratio": "anyres",
        "mm_patch_merge_type": "unires",
        "image_grid_pinpoints": [[336, 672]],
    }
    read_tiling(ConfigFields(config, "config.json"), PRE)
    with pytest.raises(CheckpointError, match=field):
        read_tiling(ConfigFields({**config, field: value}, "config.json"), PRE)


def test_a_range_of_grids_counts_tiles():
    config = {
        "image_aspect_ratio": "anyres",
        "mm_patch_merge_type": "unires",
        "image_grid_pinpoints": "(1x1),...,(6x6)",
    }
    tiling = read_tiling(ConfigFields(config, "config.json"), PRE)
    assert len(tiling.resolutions) == 36
    assert tiling.resolutions[1] == (336, 672)


def test_the_store_is_let_go_of_when_the_model_closes(model, clips, cache):
    with model() as asked:
        asked.generate(ASK, "blink", path=clips / "blink.mp4", **NEW)
        assert asked._source.on_demand._pool is not None
    assert asked._source.on_demand._pool is None
    assert not asked._source._lookup._datasets
    assert asked.generate_ids(ASK, "blink", **NEW)  # opens it again


def test_a_models_repr_is_a_line_that_says_what_it_is(model, tiny, cache):
    begin = f"<featstore.CachedLongVA '{tiny}': cpu, fp32, decoder"
    assert repr(model()) == f"{begin} auto, '{cache}'>"
    assert repr(model(cache_dir=None, decoder="exact")) == f"{begin} exact, no store>"


def test_a_model_that_is_pickled_says_how_to_do_without(model):
    with pytest.raises(TypeError, match=r"load it in each process, with CachedLongVA\('.*tiny'"):
        pickle.dumps(model())
