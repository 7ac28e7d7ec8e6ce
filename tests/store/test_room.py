"""What a writer leaves free, and what a cache may take: counted before a record is written."""

from __future__ import annotations

import pytest
from toys import put_video, store_videos, toy_features, toy_spec

from featstore.errors import StoreFull
from featstore.store import writer as writing
from featstore.store.paths import stored_bytes
from featstore.store.writer import FeatureWriter

SPEC, X = toy_spec(), toy_features(0)
EACH = 4080 + 128  # bytes of a record
NEED = EACH + 4096 + (1 << 20)  # of the next one: with a page, and what LMDB may take for its tree


@pytest.mark.parametrize(("spare", "holds"), [(0, True), (-1, False), (-NEED, False), (5, True)])
def test_the_next_record_is_counted_in_what_stays_free(cache, monkeypatch, spare, holds):
    monkeypatch.setattr(writing, "free_bytes", lambda _: (1 << 30) + NEED + spare)
    with FeatureWriter(cache, "demo", min_free=1 << 30) as writer:
        writer.add_set(SPEC, origin="toy")
        if holds:
            put_video(writer, SPEC, "a", X)
        else:
            with pytest.raises(StoreFull, match="are to stay free"):
                put_video(writer, SPEC, "a", X)


def test_records_that_are_not_committed_yet_are_counted_too(cache, monkeypatch):
    monkeypatch.setattr(writing, "free_bytes", lambda _: NEED + EACH)
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        writer.add_set(SPEC, origin="toy")
        put_video(writer, SPEC, "a", X)
        put_video(writer, SPEC, "b", X)
        with pytest.raises(StoreFull):
            put_video(writer, SPEC, "c", X)
        writer.commit()
        put_video(writer, SPEC, "c", X)


def test_a_cache_takes_no_more_than_it_may_with_all_its_datasets(cache):
    for name in ("one", "two"):
        store_videos(cache, name, {"a": X})
    files = [(cache / name / "data.mdb").stat().st_blocks * 512 for name in ("one", "two")]
    taken = stored_bytes(cache)
    assert taken == sum(files) > max(files)
    for limit, holds in ((taken + NEED, True), (taken + NEED - 1, False)):
        with FeatureWriter(cache, "one", min_free=0, max_size=limit) as writer:
            writer.add_set(SPEC, origin="toy")
            if holds:
                put_video(writer, SPEC, "b", X)
                writer.abort()
            else:
                with pytest.raises(StoreFull, match="--max-size"):
                    put_video(writer, SPEC, "b", X)
