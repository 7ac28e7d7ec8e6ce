"""Whole ingests on disks that fill up or go away: they end, say why, and the same call goes on once there is room."""

import shutil
from pathlib import Path

import pytest
from disks import KINDS, fill, free, small_disk

from featstore.encoders.registry import get_encoder
from featstore.errors import StoreError, StoreFull
from featstore.pipeline.ingest import ingest
from featstore.pipeline.options import IngestOptions
from featstore.sampling import Sampling
from featstore.store.maintenance.check import check_dataset
from featstore.store.reader import FeatureStore

pytestmark = pytest.mark.slow

VIDEOS = 12
UNCHECKED = -(1 << 50)  # bytes to leave free


@pytest.fixture
def videos(sample_clips: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for i in range(VIDEOS):
        shutil.copy(sample_clips / "blink.mp4", folder / f"v{i:02}.mp4")
    return folder


@pytest.fixture(params=KINDS)
def disk(tmp_path, request):
    with small_disk(tmp_path, request.param) as place:
        yield place


def run(videos: Path, cache: Path, *, min_free: int, **words):
    return ingest(
        videos,
        cache,
        "demo",
        encoder=get_encoder("toy"),
        sampling=Sampling(2000),
        options=IngestOptions(workers=1, min_free=min_free),
        **words,
    )


class Once:
    """Does something at the first sign of progress."""

    def __init__(self, action) -> None:
        self._action, self._done = action, False

    def __call__(self, progress) -> None:
        if progress.done and not self._done:
            self._done = True
            self._action()


def goes_on(videos: Path, disk: Path, stored: int) -> bool:
    assert check_dataset(disk, "demo").problems == []
    assert len(FeatureStore(disk)["demo"]) == stored
    free(disk)
    done = run(videos, disk, min_free=0)
    assert (done.stored, done.skipped, done.failures) == (VIDEOS - stored, stored, [])
    return check_dataset(disk, "demo").problems == []


def test_a_disk_that_fills_up_during_an_ingest_ends_it_and_it_goes_on(videos, disk):
    done = run(videos, disk, min_free=0, on_progress=Once(lambda: fill(disk)))
    assert "make room, or ingest with a lower --min-free" in done.full
    assert 0 < done.stored < VIDEOS
    assert goes_on(videos, disk, done.stored)


def test_a_disk_that_fills_up_behind_the_check_ends_it_and_it_goes_on(videos, disk):
    """What another program takes between check and commit reaches us as LMDB's error."""
    done = run(videos, disk, min_free=UNCHECKED, on_progress=Once(lambda: fill(disk)))
    assert "free some space and run the command again" in done.full
    stored = len(FeatureStore(disk)["demo"])
    assert done.stored <= stored < VIDEOS
    assert goes_on(videos, disk, stored)


def test_a_disk_that_is_full_before_takes_no_work(videos, disk):
    fill(disk)
    with pytest.raises(StoreFull, match=r"make room, .*lower --min-free|No space left"):
        run(videos, disk, min_free=0)
    with pytest.raises(StoreFull):
        run(videos, disk, min_free=UNCHECKED)
    free(disk)
    assert run(videos, disk, min_free=0).stored == VIDEOS


def test_a_dataset_taken_away_during_an_ingest_ends_it_with_a_reason(videos, cache):
    with pytest.raises(StoreError, match=r"No such file|there is no dataset"):
        run(videos, cache, min_free=0, on_progress=Once(lambda: shutil.rmtree(cache / "demo")))
    assert run(videos, cache, min_free=0).stored == VIDEOS


def test_a_cache_taken_away_during_an_ingest_ends_it_with_a_reason(videos, cache):
    with pytest.raises(StoreError, match=r"No such file|there is no"):
        run(videos, cache, min_free=0, on_progress=Once(lambda: shutil.rmtree(cache)))
    assert run(videos, cache, min_free=0).stored == VIDEOS
