"""What the rows of a cache say, summed up."""

import dataclasses

import numpy as np
import pytest
from surveyed_rows import ENTRY, ROW, surveyed
from toys import put_video, store_videos, toy_features, toy_spec

from featstore.records.quantization import QuantError
from featstore.records.storage import Storage
from featstore.report import survey
from featstore.report.figures import error_histogram, stretches
from featstore.report.page import render_page
from featstore.report.survey import (
    ERROR_ENDS,
    CacheSurvey,
    SetSurvey,
    merged_reasons,
    survey_cache,
)
from featstore.spec import FeatureSpec
from featstore.store.catalog import open_dataset
from featstore.store.dataset import Dataset
from featstore.store.rows import Failure
from featstore.store.writer import FeatureWriter


def test_a_cache_is_counted_set_by_set(cache):
    error = QuantError(cosine=0.99, relative_l2=0.01, max_abs=0.1, token_p99=0.013, token_max=0.4)
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        writer.add_set(toy_spec(), Storage(), origin="toy", max_error=0.01)
        put_video(writer, toy_spec(), "a", toy_features(1), error=error, doubt="edit list")
        put_video(
            writer, toy_spec(), "b", toy_features(2), error=QuantError(1.0, 0.0, 0.0, 0.0, 0.0)
        )
        writer.fail(Failure("c", "/c.mp4", toy_spec().digest, "/c.mp4: cut short", 1.0))
    store_videos(cache, "other", {"x": toy_features(3)}, spec=toy_spec(8), storage=Storage("fp16"))
    rows = []
    found = survey_cache(cache, counts={}, listed={}, on_rows=rows.append)
    demo, other = found.sets
    assert (demo.dataset, demo.is_default, demo.videos, demo.frames) == ("demo", True, 2, 8)
    assert (demo.exact, demo.beyond, sum(demo.errors), demo.failed) == (1, 1, 1, 1)
    assert demo.worst == [(0.013, 0.4, "a")]
    assert (demo.decoders, demo.doubts) == ({"pyav": 2}, {"edit list": 1})
    assert [reason.text for reason in demo.failures.values()] == ["cut short"]
    assert other.storages == {"fp16": 1}
    assert demo.record_bytes == sum(
        entry.record_bytes for entry in map(Dataset(cache, "demo").entry, ["a", "b"])
    )
    assert rows == [2, 3]


def test_of_imported_features_no_error_is_known():
    imported = FeatureSpec.of_imported(toy_spec().encoder.geometry, 4, {"model_signature": "x"})
    found = SetSurvey("demo", dataclasses.replace(ROW, spec=imported), is_default=True)
    survey._add(found, [ENTRY._replace(token_p99=0.0), ENTRY])
    assert (found.videos, found.exact, sum(found.errors), found.beyond) == (2, 0, 0, 0)
    assert found.worst == []
    page = render_page(CacheSurvey([found], {}, []), "c", now=1.7e9, version="1")
    assert "Imported: how far the values are from an encoder's is not known." in page
    assert "stored exactly" not in page


def test_the_worst_are_those_of_all_rows():
    errors = np.random.default_rng(0).permutation(500) / 1000
    found = surveyed([ENTRY._replace(token_p99=e, video_id=f"{e}") for e in errors.tolist()])
    assert [video.token_p99 for video in found.worst] == [e / 1000 for e in range(499, 489, -1)]
    assert all(float(video.video_id) == video.token_p99 for video in found.worst)
    assert (found.exact, sum(found.errors), found.beyond) == (1, 499, 479)


@pytest.mark.parametrize("error", [1e-30, 1e30, float("inf"), float("nan")])
def test_an_error_beyond_the_bins_is_in_the_last(error):
    found = surveyed([ENTRY._replace(token_p99=error)])
    assert [i for i, count in enumerate(found.errors) if count] == [0 if error < 1 else 239]
    assert error_histogram(found)


def test_bars_are_few_and_hold_every_video():
    errors = np.exp(np.random.default_rng(1).normal(-5, 1, 300)).clip(1e-4, 9).tolist()
    histogram = error_histogram(surveyed([ENTRY._replace(token_p99=e) for e in errors]))
    assert sum(histogram.bars) == 300
    assert len(histogram.bars) <= 40
    assert histogram.low < min(errors)
    assert histogram.high > max(errors)
    place = np.log(0.02 / histogram.low) / np.log(histogram.high / histogram.low)
    assert histogram.budget == pytest.approx(place)
    assert error_histogram(surveyed([ENTRY._replace(token_p99=0.0)])) is None


def test_the_budget_is_on_the_axis_also_far_from_the_errors():
    histogram = error_histogram(surveyed([ENTRY._replace(token_p99=0.0001)]))
    assert 0 < histogram.budget < 1


def test_an_axis_of_merged_bins_has_the_places_of_its_bars():
    found = surveyed([ENTRY._replace(token_p99=e) for e in (ERROR_ENDS[5] * 1.01, 0.5)])
    histogram = error_histogram(found)
    bar = next(i for i, count in reversed(list(enumerate(histogram.bars))) if count)
    ratio = (histogram.high / histogram.low) ** (1 / len(histogram.bars))
    assert histogram.low * ratio**bar <= 0.5 <= histogram.low * ratio ** (bar + 1)


def test_a_pause_begins_another_stretch():
    times = [1000, 1004, 1012, 1600, 9000, 9001]
    rows = [ENTRY._replace(created=1.7e9 + t) for t in times]
    late, early = stretches("demo", surveyed(rows).stored)
    assert (late.start, late.videos, late.size, late.per_minute) == (1.7e9 + 9000, 2, 2000, None)
    assert (early.start, early.seconds, early.videos) == (1.7e9 + 1000, 610, 4)
    assert early.per_minute == pytest.approx(60 * 4 / 610)
    assert sum(early.bars) == 4
    assert early.bars[0] == 3


@pytest.mark.parametrize("created", [float("nan"), -1e300, 1e300, float("inf")])
def test_a_time_that_is_none_does_no_harm(created):
    [found] = stretches("demo", surveyed([ENTRY._replace(created=created)]).stored)
    assert found.videos == 1


def test_reasons_that_differ_in_path_and_numbers_are_one():
    found = SetSurvey("demo", ROW, is_default=True)
    for i in range(9):
        path = f"/videos/{i} 5.mp4"
        row = Failure(f"v{i}", path, "", f"{path}: took longer than {i}.5 s", 0.0)
        survey._add_failure(found.failures, row)
    other = dataclasses.replace(found, dataset="other")
    [(reason, datasets)] = merged_reasons([found, other])
    assert (reason.text, reason.videos, datasets) == (
        "took longer than 0.5 s",
        18,
        ["demo", "other"],
    )
    assert reason.examples == ["v0", "v1", "v2"]


def test_reasons_are_bounded(monkeypatch):
    monkeypatch.setattr(survey, "_REASONS", 3)
    found = SetSurvey("demo", ROW, is_default=True)
    for word in ("a", "b", "c", "d", "e", "a"):
        survey._add_failure(found.failures, Failure("v", "/v", "", word, 0.0))
    assert {key: row.videos for key, row in found.failures.items()} == {
        **{"a": 2, "b": 1, "c": 1},
        "other reasons": 2,
    }


def test_coverage_is_that_of_the_list_if_there_is_one(cache):
    spec = store_videos(cache, "demo", {"a": toy_features(1), "b": toy_features(2)})
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        writer.add_set(spec, origin="toy")
        writer.fail(Failure("c", "/c.mp4", spec.digest, "cut short", 1.0))
    counts = {"demo": 7, "Video-MME": 900, "MLVU": None}
    [known] = survey_cache(cache, counts=counts, listed={}).coverage
    assert (known.videos, known.stored, known.failed) == (7, 2, 1)
    lists = {"demo": ["a", "c", "d", "e"], "none": ["x"]}
    listed, none = survey_cache(cache, counts={}, listed=lists).coverage
    assert (listed.videos, listed.stored, listed.failed) == (4, 1, 1)
    assert listed.missing == ("d", "e")
    assert (none.videos, none.stored, none.missing) == (1, 0, ("x",))


def test_a_dataset_that_cannot_be_read_is_named(cache):
    store_videos(cache, "demo", {"a": toy_features(1)})
    (cache / "bad").mkdir()
    (cache / "bad" / "data.mdb").write_bytes(bytes(10_000))
    (cache / "gone").mkdir()
    (cache / "gone" / "lock.mdb").touch()
    try:
        found = survey_cache(cache, counts={}, listed={})
    finally:
        (cache / "bad" / "data.mdb").unlink()
    assert list(found.errors) == ["bad", "gone"]
    assert [there.dataset for there in found.sets] == ["demo"]
    assert open_dataset(cache, "demo")
