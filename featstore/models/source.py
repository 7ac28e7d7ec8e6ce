"""Where a video's features come from: the store, another process that is just making them, or the encoder.

A miss that is stored is answered from the store as well: what the model sees then is what it will see at the next
question, quantized and back, so the answers of a first and a second run are the same. Features that are not stored are
used as the encoder gave them.
"""

from __future__ import annotations

import sys
import weakref
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from featstore.decoding.video_file import Video, was_replaced
from featstore.errors import (
    FeatstoreError,
    FeatureNotFound,
    QuantizeError,
    RecordError,
    StoreDamaged,
    StoreError,
    StoreFull,
    plain,
)
from featstore.models.lookup import Lookup
from featstore.pipeline.on_demand import Encoded, LiveEncoder, check_finite, store_features
from featstore.store import single_flight_lock
from featstore.store.describe import write_cache_meta
from featstore.store.paths import dataset_path, make_folder
from featstore.system.forks import tell_of_forks
from featstore.torch import to_tensor

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Hashable

    from featstore.encoders.base import Encoder
    from featstore.models.lookup import Wanted
    from featstore.models.statistics import CacheStatistics
    from featstore.records.record import Features

ON_MISS = ("encode", "encode-only", "error")


@dataclass(frozen=True)
class Visual:
    """Features on their way into the prompt.

    rows: how many. load: brings them to the device, (rows, D). identity: equal for equal features, None where unknown.
    """

    rows: int
    load: Callable[[], torch.Tensor]
    identity: Hashable = None


class FeatureSource:
    """Looks features up, and on a miss does what `on_miss` says, one of ON_MISS."""

    def __init__(
        self,
        encoder: Encoder,
        cache_dir: str | os.PathLike[str] | None,
        *,
        device: torch.device,
        dtype: torch.dtype,
        on_miss: str,
        decode_timeout: float,
        statistics: CacheStatistics,
    ) -> None:
        """Open nothing yet. cache_dir: None to encode each time. device, dtype: of what `Visual.load` returns."""
        if on_miss not in ON_MISS:
            raise ValueError(f"on_miss is {on_miss!r}; use one of {', '.join(ON_MISS)}")
        self.live = LiveEncoder(encoder, timeout=decode_timeout)
        self._origin = encoder.origin
        self._stores = on_miss == "encode" and cache_dir is not None
        self._given_up: set[str] = set()
        self._lookup = None if cache_dir is None else Lookup(cache_dir)
        self._device, self._dtype = device, dtype
        self._on_miss = on_miss
        self._statistics = statistics
        self._reported: set[str] = set()
        self._describe: weakref.finalize[[str | os.PathLike[str]], FeatureSource] | None = None
        tell_of_forks(self)

    def get(self, wanted: Wanted) -> Visual:
        """Return the features; on a miss raise what `on_miss` says, or VideoError where its file cannot be decoded."""
        if self._lookup is None:
            with self._statistics.timed("seconds_encoding"):
                return self._unstored(self._encode(wanted))
        with self._statistics.timed("seconds_reading"):
            features = self._find(wanted)
        if features is None and self._on_miss == "error":
            self._statistics.add(misses=1)
            self._lookup.refuse(wanted, self._origin)
        return self._make(wanted) if features is None else self._stored(features)

    def close(self) -> None:
        """End the decoder and let go of the store."""
        self.live.close()
        if self._describe is not None:
            self._describe()
        if self._lookup is not None:
            self._lookup.close()

    def after_fork(self) -> None:
        """Leave it to the parent to describe what the parent stored."""
        if self._describe is not None:
            self._describe.detach()

    def _find(self, wanted: Wanted) -> Features | None:
        assert self._lookup is not None
        try:
            features = self._lookup.find(wanted)
        except (RecordError, StoreDamaged) as exc:
            if self._on_miss == "error":
                self._statistics.add(misses=1)
                raise
            self._say_once(f"{exc}; features that cannot be read are made again")
            return None
        if features is None or wanted.path is None:
            return features
        return self._unless_replaced(features, wanted.path)

    def _unless_replaced(self, features: Features, path: str) -> Features | None:
        """Return `features`, None where the file at `path` is another than they were made from: that is a miss."""
        header = features.header
        if not was_replaced(header.source, path):
            return features
        found = (
            f"{path} is not the file that the features of video {header.video_id!r} in dataset {header.dataset!r} were "
            f"made from, {header.video_path} of {header.source.size:,} bytes"
        )
        if self._on_miss == "error":
            self._statistics.add(misses=1)
            raise FeatureNotFound(f"{found}; ingest it again, or give each file an id of its own")
        self._say_once(f"{found}; its features are made again")
        return None

    def _make(self, wanted: Wanted) -> Visual:
        """Return the features of a video that is not stored, having stored them where that is wanted and can be."""
        with self._statistics.timed("seconds_encoding"), ExitStack() as flight:
            if self._stores_in(wanted.dataset) and self._take_off(flight, wanted):
                features = self._find(wanted)  # another process may have made them while we waited
                if features is not None:
                    return self._stored(features)
            self._statistics.add(misses=1)
            if self._lookup is not None:
                self._say_once(self._lookup.mismatch(wanted, self._origin))
            encoded = self._encode(wanted)
            if self._stores_in(wanted.dataset):
                features = self._store(encoded, wanted)
                if features is not None:
                    return self._visual(features)
        return self._unstored(encoded)

    def _take_off(self, flight: ExitStack, wanted: Wanted) -> bool:
        assert self._lookup is not None
        key = f"{wanted.spec.digest}:{wanted.video}".encode("utf-8", "surrogatepass")
        folder = dataset_path(self._lookup.cache_dir, wanted.dataset)
        try:
            make_folder(folder.parent)
        except StoreError as exc:
            self._give_up(exc)
            return False
        try:
            make_folder(folder)
            flight.enter_context(single_flight_lock(folder, key))
        except StoreError as exc:
            self._give_up(exc, wanted.dataset)
            return False
        return True

    def _encode(self, wanted: Wanted) -> Encoded:
        if wanted.path is None:
            where = f" in dataset {wanted.dataset!r}" if self._lookup else ", there being no cache,"
            raise FeatureNotFound(
                f"video {wanted.video!r} is not stored{where} and no path came with it; pass path= with its file"
            )
        return self.live.encode(Video(wanted.video, wanted.path), wanted.spec.sampling)

    def _store(self, encoded: Encoded, wanted: Wanted) -> Features | None:
        assert self._lookup is not None
        place = self._lookup.cache_dir, wanted.dataset
        try:
            store_features(encoded, *place, wanted.spec, self._origin)
            if self._describe is None or not self._describe.alive:
                # It reads the whole catalog: once, at `close` or when the process ends, not for each video.
                self._describe = weakref.finalize(self, _describe_store, place[0])
            return self._find(wanted)
        except QuantizeError as exc:
            _say(f"{wanted.path}: {exc}; its features are used, but not stored")
        except StoreError as exc:
            self._give_up(exc, wanted.dataset)
        return None

    def _say_once(self, sentence: str) -> None:
        if sentence and sentence not in self._reported:
            self._reported.add(sentence)
            _say(sentence)

    def _stores_in(self, dataset: str) -> bool:
        return self._stores and dataset not in self._given_up

    def _give_up(self, exc: StoreError, dataset: str | None = None) -> None:
        """Go on as `encode-only`, in all datasets where it is room that is wanting: an evaluation is not to end."""
        if dataset is None or isinstance(exc, StoreFull):
            self._stores = False
            what = "features"
        else:
            self._given_up.add(dataset)
            what = f"features of dataset {dataset!r}"
        _say(f"{what} that are missing are encoded but no longer stored: {exc}")

    def _stored(self, features: Features) -> Visual:
        self._statistics.add(hits=1)
        return self._visual(features)

    def _visual(self, features: Features) -> Visual:
        header = features.header

        def load() -> torch.Tensor:
            with self._statistics.timed("seconds_reading"):
                self._statistics.add(bytes_read=header.raw_bytes + header.scale_bytes)
                loaded = to_tensor(features, device=self._device, dtype=self._dtype)
            if self._dtype == torch.float16 and header.dtype != "fp16":  # of a wider range
                check_finite([loaded], f"video {header.video_id!r}, taken from the store", "fp16")
            return loaded

        identity = (
            header.dataset,
            header.video_id,
            header.spec,
            header.payload_xxh3,
            header.created,
        )
        return Visual(features.shape[0], load, identity)

    def _unstored(self, encoded: Encoded) -> Visual:
        features = encoded.features(self._dtype)
        return Visual(len(features), lambda: features)


def _describe_store(cache_dir: str | os.PathLike[str]) -> None:
    with suppress(FeatstoreError):  # it is for people to read; the features are safe
        write_cache_meta(cache_dir)


def _say(sentence: str) -> None:
    if sys.stderr is not None:  # print would take stdout then
        with suppress(OSError, ValueError):  # an answer is not to be lost to what cannot be said
            print(f"featstore: {plain(sentence)}", file=sys.stderr, flush=True)
