"""Features of every geometry go through the whole of featstore and come out bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from geometries import (
    GEOMETRIES,
    SMALL,
    CountingEncoder,
    clip_windows,
    features_of,
    grid_by_video,
    newline_row,
    pooled,
    smallest,
)
from make_sample_clips import make_clip

import featstore
from featstore.decoding.video_file import Video
from featstore.errors import FeatstoreError, RecordError
from featstore.geometry import MAX_FRAMES, Geometry
from featstore.pipeline import ingest as ingest_module
from featstore.pipeline.on_demand import OnDemandEncoder, store_features
from featstore.preprocessing import ExactResize
from featstore.records.quantization import dequantize, quantize
from featstore.records.storage import MAX_PAYLOAD_BYTES, Storage
from featstore.sampling import Sampling
from featstore.spec import FeatureSpec
from featstore.store.maintenance.check import check_dataset
from featstore.store.maintenance.compact import compact_dataset
from featstore.store.maintenance.merge import merge_dataset
from featstore.torch import to_tensor

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_children")]

STORAGES = [
    Storage("int8", "channel_token"),
    Storage("bf16"),
    Storage("fp32"),
    Storage("int8", "channel", "zstd"),
    Storage("int8", "token"),
    Storage("int8", "tensor"),
    Storage("fp16", codec="lz4"),
    Storage("fp32", codec="planes"),
]
# Each geometry in one storage, and each storage with one geometry.
STEPS = [
    *zip(GEOMETRIES, STORAGES[:3] * 2, strict=True),
    *(("grid_by_video", storage) for storage in STORAGES if storage != Storage("bf16")),
]


@pytest.fixture
def clips(small_clips: Path, tmp_path: Path) -> Path:
    """Three clips of other lengths, two of one shape."""
    return Path(shutil.copytree(small_clips, tmp_path / "clips"))


@pytest.fixture(scope="module")
def small_clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    for name, width, height, frames in (
        ("long", 96, 64, 30),
        ("tall", 64, 96, 12),
        ("short", 96, 64, 5),
    ):
        path = folder / f"{name}.mp4"
        make_clip(path, width=width, height=height, fps=8, frames=frames, draw=draw_noise)
    return folder


def draw_noise(index: int, width: int, height: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)


def ingest(clips, cache, encoder, sampling, storage=None, **options):
    return featstore.ingest(
        clips,
        cache,
        "demo",
        encoder=encoder,
        sampling=sampling,
        storage=storage,
        options=featstore.IngestOptions(min_free=0, workers=1, **options),
    )


def assert_holds(cache: Path, clips: Path, encoder: CountingEncoder, sampling, storage) -> None:
    """Each clip's features are there as `storage` has them, with the layout of its frames."""
    dataset = featstore.open(cache)["demo"]
    assert sorted(dataset) == sorted(path.stem for path in clips.iterdir())
    for path in clips.iterdir():
        features, x = dataset[path.stem], features_of(path, encoder, sampling)
        stored, scales = quantize(x, storage)
        np.testing.assert_array_equal(features.data, stored)
        assert len(features.scales) == len(scales)
        for found, scale in zip(features.scales, scales, strict=True):
            np.testing.assert_array_equal(found, scale)
        header = features.header
        cells = header.layout.grid and header.layout.grid[1:]
        assert header.layout == encoder.identity.geometry.layout(len(header.frames), cells)
        assert (header.layout.rows, encoder.identity.geometry.row_width) == features.shape
        tensor = to_tensor(features, dtype=torch.float32)
        np.testing.assert_array_equal(tensor.numpy(), dequantize(stored, scales, storage.values))
        if storage.values != "int8":
            np.testing.assert_array_equal(features.numpy(), x)
            assert header.error.token_max == 0
    assert check_dataset(cache, "demo").problems == []


@pytest.mark.parametrize(("name", "storage"), STEPS, ids=str)
def test_features_come_back_from_every_step_as_they_went_in(clips, cache, tmp_path, name, storage):
    encoder, sampling = GEOMETRIES[name](), Sampling(21)
    summary = ingest(clips, cache, encoder, sampling, storage)
    assert (summary.stored, summary.failures) == (3, [])
    assert_holds(cache, clips, encoder, sampling, storage)
    away = tmp_path / "away"
    assert merge_dataset(cache, away, "demo", min_free=0).stored == 3
    compact_dataset(away, "demo")
    assert_holds(away, clips, encoder, sampling, storage)
    back = tmp_path / "back"
    assert merge_dataset(away, back, "demo", min_free=0).stored == 3
    assert_holds(back, clips, encoder, sampling, storage)
    assert ingest(clips, back, encoder, sampling).skipped == 3


@pytest.mark.parametrize(
    ("name", "nframe"),
    [*((name, 1) for name in GEOMETRIES), ("grid_by_video", 2), ("clip_windows", 2)],
)
def test_any_number_of_frames_makes_the_units_it_should(clips, cache, name, nframe):
    encoder = GEOMETRIES[name]()
    ingest(clips, cache, encoder, Sampling(nframe), Storage("fp32"))
    assert_holds(cache, clips, encoder, Sampling(nframe), Storage("fp32"))


@pytest.mark.parametrize("name", GEOMETRIES)
def test_videos_that_share_batches_have_the_features_of_each_alone(clips, cache, name):
    """They have as many frames as seconds, so that no batch ends with a video."""
    encoder, sampling = GEOMETRIES[name](), Sampling(40, "fps", 4.0)
    encoder.batch_frames = 24
    ingest(clips, cache, encoder, sampling, Storage("fp32"))
    units = max(1, 24 // encoder.identity.geometry.frames_per_unit)
    assert all(shape[0] <= units for shape in encoder.shapes)
    assert_holds(cache, clips, encoder, sampling, Storage("fp32"))


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_video_made_on_demand_is_stored_as_an_ingest_stores_it(clips, cache, tmp_path, name):
    encoder, sampling, storage = GEOMETRIES[name](), Sampling(21), Storage("int8", "channel_token")
    ingest(clips, cache, encoder, sampling, storage)
    there = featstore.open(cache)["demo"]
    spec, other = there.feature_set.spec, tmp_path / "other"
    on_demand = OnDemandEncoder(encoder, timeout=60)
    for path in clips.iterdir():
        encoded = on_demand.encode(Video(path.stem, str(path)), sampling)
        store_features(encoded, other, "demo", spec, "here", storage=storage, min_free=0)
        store_features(encoded, other, "demo", spec, "here", min_free=0)  # follows the set
    on_demand.close()
    here = featstore.open(other)["demo"]
    for video, features in there.items():
        np.testing.assert_array_equal(here[video].data, features.data)
        assert here[video].header.layout == features.header.layout
    assert_holds(other, clips, encoder, sampling, storage)


def test_videos_of_other_shapes_have_other_grids_and_share_no_batch(clips, cache):
    encoder = grid_by_video()
    encoder.batch_frames = 64
    ingest(clips, cache, encoder, Sampling(6))
    grids = {
        name: video.header.layout.grid for name, video in featstore.open(cache)["demo"].items()
    }
    assert grids == {"long": (3, 2, 4), "short": (3, 2, 4), "tall": (3, 4, 2)}
    assert {shape[2:] for shape in encoder.shapes} == {(28, 56, 3), (56, 28, 3)}


def test_a_unit_beyond_the_last_frame_repeats_it(clips, cache):
    encoder = clip_windows()
    ingest(clips, cache, encoder, Sampling(3))
    header = featstore.get(cache, "demo", "short").header
    assert (len(header.frames), header.layout.units, header.layout.rows) == (3, 1, 6)
    assert {shape[1] for shape in encoder.shapes} == {16}


class Wrong(CountingEncoder):
    """Its rows are not those of its identity."""

    cells: tuple[int, int] | None = None
    extra: int | None = None
    change: tuple = ()

    def grid(self, height, width):
        return self.cells or super().grid(height, width)

    def extra_rows(self):
        rows = super().extra_rows()
        rows = self.change[0](rows) if self.change else rows
        return rows if self.extra is None else rows[: self.extra]


@pytest.mark.parametrize(
    ("like", "fault", "says"),
    [
        (grid_by_video, {"cells": (1, 8)}, ""),
        (grid_by_video, {"cells": (3, 5)}, "makes a grid of 3 x 5 tokens of frames of"),
        (grid_by_video, {"cells": (0, 4)}, "makes a grid of 0 x 4 tokens"),
        (grid_by_video, {"cells": (2, 5)}, r"made features of shape \(\d+, 8, 8\) of \d+ units"),
        (
            newline_row,
            {"change": (np.float64,)},
            "made extra rows of dtype float64; its identity says fp32",
        ),
        (newline_row, {"change": (np.int64,)}, "made extra rows of dtype int64"),
        (newline_row, {"change": (np.ndarray.tolist,)}, "made extra rows of dtype list"),
        (
            newline_row,
            {"change": (torch.from_numpy,)},
            "features of type ndarray and extra rows of",
        ),
        (newline_row, {"extra": 0}, r"made extra rows of shape \(0, 8\); its identity makes it"),
    ],
)
def test_rows_that_are_not_those_of_the_identity_end_the_ingest(clips, cache, like, fault, says):
    encoder = like()
    encoder.__class__ = Wrong
    vars(encoder).update(fault)
    if not says:  # another shape of the same number of tokens is a grid, too
        assert ingest(clips, cache, encoder, Sampling(4)).stored == 3
        return
    with pytest.raises(FeatstoreError, match=says):
        ingest(clips, cache, encoder, Sampling(4))


def large(**numbers: int) -> CountingEncoder:
    geometry = Geometry(**{"tokens_per_unit": 1, "hidden_dim": 1, **numbers})
    return CountingEncoder(geometry, ExactResize(height=1, width=1), grid=(1, 1))


class Repeating(CountingEncoder):
    """Has as many tokens as asked for, each the same."""

    def encode(self, frames):
        return np.repeat(super().encode(frames), self.identity.geometry.tokens_per_unit, axis=1)


@pytest.mark.parametrize(
    ("nframe", "numbers"),
    [
        (MAX_FRAMES, {}),
        (1, {"frames_per_unit": MAX_FRAMES, "stride": MAX_FRAMES}),
        (1, {"extra_rows": 1 << 20}),
        (1, {"tokens_per_unit": 1 << 20}),
        (2, {"planes": 256, "hidden_dim": 1 << 14}),
    ],
    ids=str,
)
def test_the_largest_numbers_go_through(clips, cache, nframe, numbers):
    for name in ("long", "tall"):
        (clips / f"{name}.mp4").unlink()
    encoder = large(**numbers)
    encoder.__class__ = Repeating
    encoder.batch_frames = 4096
    storage = Storage("int8", "token" if "hidden_dim" in numbers else "channel")
    assert ingest(clips, cache, encoder, Sampling(nframe), storage).failures == []
    assert_holds(cache, clips, encoder, Sampling(nframe), storage)


@pytest.mark.parametrize(
    ("nframe", "numbers", "storage"),
    [
        (2, {"tokens_per_unit": 1 << 16, "hidden_dim": 1 << 15}, Storage("int8")),
        (1, {"tokens_per_unit": 1 << 16, "hidden_dim": 1 << 14}, Storage("fp32")),
        (1, {"tokens_per_unit": 1 << 24, "hidden_dim": 1}, Storage("int8", "token")),
        (1, {"extra_rows": 1 << 24, "hidden_dim": 256}, Storage("int8")),
        (MAX_FRAMES, {"tokens_per_unit": 1 << 24}, Storage("int8")),
        (1, {"planes": 256, "hidden_dim": 1 << 24}, Storage("int8")),
    ],
    ids=str,
)
def test_what_no_record_holds_is_refused_before_any_work(
    clips, cache, monkeypatch, nframe, numbers, storage
):
    monkeypatch.setattr(ingest_module, "Scheduler", None)
    with pytest.raises(RecordError, match=r"take fewer frames with --nframe"):
        ingest(clips, cache, large(**numbers), Sampling(nframe), storage)
    assert not cache.exists()


def test_a_payload_of_just_the_bound_is_planned(clips, cache):
    """The bound itself is allowed; nothing of such a size is made here."""
    rows = MAX_PAYLOAD_BYTES // (1 << 10)
    geometry = Geometry(tokens_per_unit=rows, hidden_dim=1 << 10)
    encoder = CountingEncoder(geometry, SMALL, grid=(1, 1))
    plan = ingest(clips, cache, encoder, Sampling(1), Storage("int8"), dry_run=True)
    assert plan.planned == 3
    assert plan.needed_bytes > 3 * (MAX_PAYLOAD_BYTES - (1 << 10))


def test_geometry_is_what_features_are_and_storage_is_not(clips, cache):
    ingest(clips, cache, pooled(), Sampling(2))
    ingest(clips, cache, smallest(), Sampling(2), Storage("fp32"))
    dataset = featstore.open(cache)["demo"]
    assert [row.storage for row in dataset.sets.rows()] == [Storage(), Storage("fp32")]
    specs = [row.spec for row in dataset.sets.rows()]
    assert all(isinstance(spec, FeatureSpec) for spec in specs)
    differing = {name for name, *_ in specs[0].diff(specs[1])}
    assert differing == {
        "encoder.geometry.hidden_dim",
        "preprocessing.height",
        "preprocessing.width",
    }
