"""Where a video's features come from: the store, another process that is just making them, or the encoder.

A miss that is stored is answered from the store as well: the model sees what it will see at the next question,
quantized and back, so the answers of a first and a second run are the same. Features that are not stored are
used as the encoder gave them.
"""

from __future__ import annotations

import weakref
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING

from featstore.decoding.video_file import Video, was_replaced
from featstore.encoders.base import checkpoint_options
from featstore.errors import (
    DatasetNotFound,
    FeatstoreError,
    FeatureNotFound,
    QuantizeError,
    RecordError,
    StoreDamaged,
    StoreError,
    StoreLocked,
    StoreMismatch,
)
from featstore.models.finite import fits, refuse_too_large
from featstore.models.lookup import Lookup
from featstore.models.notices import Notices, say
from featstore.models.visual_input import SampledClip, VisualInput
from featstore.pipeline.on_demand import EncodedVideo, OnDemandEncoder, store_features
from featstore.records.features import Features
from featstore.store import single_flight_lock
from featstore.store.describe import write_cache_meta
from featstore.store.paths import dataset_path, make_folder
from featstore.system.forks import tell_of_forks
from featstore.torch import to_tensor

if TYPE_CHECKING:
    import os

    import torch

    from featstore.encoders.base import Encoder
    from featstore.models.lookup import FeatureRequest
    from featstore.models.source_options import SourceOptions
    from featstore.models.statistics import CacheStatistics


class FeatureSource:
    """Looks features up, and on a miss encodes, encodes and stores, or raises.

    Threads may share it. A forked child may use it too; what the parent stored, the parent describes.

    Attributes:
        on_demand: the encoder of videos and images that are not stored.
    """

    def __init__(
        self,
        encoder: Encoder,
        options: SourceOptions,
        *,
        device: torch.device,
        dtype: torch.dtype,
        statistics: CacheStatistics,
    ) -> None:
        """Take the options; nothing is opened yet.

        Args:
            encoder: makes the features that are not stored.
            options: the store, the decoder, and what becomes of a miss.
            device: the device of what `VisualInput.load` returns.
            dtype: its dtype.
            statistics: counts hits and misses.
        """
        self.on_demand = OnDemandEncoder(
            encoder, timeout=options.decode_timeout, decoder=options.decoder
        )
        self._encoder = encoder
        self._storage = options.storage
        self._stores = options.on_miss == "encode" and options.cache_dir is not None
        self._given_up: set[str] = set()
        self._lookup = None
        if options.cache_dir is not None:
            self._lookup = Lookup(options.cache_dir, accept_imported=options.accept_imported)
        self._device, self._dtype = device, dtype
        self._on_miss = options.on_miss
        self._statistics = statistics
        self._notices = Notices()
        self._describe: weakref.finalize[[str | os.PathLike[str]], FeatureSource] | None = None
        tell_of_forks(self)

    def get(self, request: FeatureRequest) -> VisualInput:
        """Return the features that are asked for.

        Raises:
            VideoError, NotFinite: they are not stored, and cannot be made.
            FeatureNotFound: they are not stored, and `on_miss` is `error` or the request has no path.
            StoreNotFound, StoreMismatch: likewise, under `error`; StoreMismatch also if several feature sets serve, or
                the dataset's file is none of ours.
            RecordError, StoreDamaged, DatasetNotFound: what is stored is damaged or lost, likewise.
        """
        if self._lookup is None:
            with self._statistics.timed("seconds_encoding"):
                return self._unstored(self._encode(request))
        with self._statistics.timed("seconds_reading"):
            found = self._find(request)
        if isinstance(found, Features):
            return self._stored(found)
        if self._on_miss == "error":
            self._statistics.add(misses=1)
            if found is not None:
                raise found
            self._lookup.refuse(request, checkpoint_options(self._encoder))
        return self._make(request, found)

    def close(self) -> None:
        """Stop the decoder and let go of the store."""
        self.on_demand.close()
        if self._describe is not None:
            self._describe()
        if self._lookup is not None:
            self._lookup.close()

    def after_fork(self) -> None:
        """Leave the description of what the parent stored to the parent."""
        if self._describe is not None:
            self._describe.detach()

    def _find(self, request: FeatureRequest) -> Features | FeatstoreError | None:
        """Return the stored features, what is wrong with them, or None if there are none."""
        assert self._lookup is not None
        try:
            features = self._lookup.find(request)
        except (RecordError, StoreDamaged, DatasetNotFound) as exc:
            return exc
        if features is None or request.path is None:
            return features
        header = features.header
        if not header.source.size:  # imported: which file they were made from is not known
            return features
        if not was_replaced(header.source, request.path, header.video_path):
            return features
        return FeatureNotFound(
            f"{request.path} is not the file that the features of video {header.video_id!r} in dataset "
            f"{header.dataset!r} were made from, {header.video_path} of {header.source.size:,} bytes",
            remedy="ingest it again, or give each file an id of its own",
        )

    def _make(self, request: FeatureRequest, unusable: FeatstoreError | None) -> VisualInput:
        """Return the features of a video, stored if that is asked for and possible.

        Args:
            request: what is asked for.
            unusable: what is wrong with what is stored; None if nothing is.
        """
        assert self._lookup is not None
        kept: Features | FeatstoreError | None = None
        with self._statistics.timed("seconds_encoding"), ExitStack() as lock:
            # What is lost is not made again: then nothing would say any more that it was there.
            stores = self._stores_in(request.dataset) and not isinstance(unusable, DatasetNotFound)
            if stores:
                kept = self._lock_video(lock, request)
            if stores and kept is None:
                found = self._find(request)  # another process may have made them while we waited
                if isinstance(found, Features):
                    return self._stored(found)
                unusable = found
            self._statistics.add(misses=1)
            explained = self._explain(request, stores=stores) if unusable is None else ""
            encoded = self._encode(request, unusable)
            if stores and kept is None:
                kept = self._store(encoded, request)
        stored = isinstance(kept, Features)
        self._notices.once(explained)
        if unusable is not None:
            self._notices.unusable(unusable, request.dataset, stored=stored)
        if isinstance(kept, Features):
            return self._visual(kept)
        if kept is not None and type(kept) is not type(unusable):
            self._notices.not_stored(kept)
        if isinstance(kept, StoreLocked):  # each miss would wait for minutes
            self._given_up.add(request.dataset)
        return self._unstored(encoded)

    def _explain(self, request: FeatureRequest, *, stores: bool) -> str:
        """Return why there are no features, and what is done about it if anything can be."""
        assert self._lookup is not None
        follows = ""
        if request.path is not None and stores:
            follows = f"they are made and stored as set {request.spec.digest[:8]}"
        elif request.path is not None:
            follows = "they are made for this question only"
        why = self._lookup.explain(request, checkpoint_options(self._encoder), follows)
        if request.path is None:  # nothing is made
            self._notices.once(why)
        return why

    def _lock_video(self, lock: ExitStack, request: FeatureRequest) -> StoreError | None:
        """Hold the right to make the features; return why that cannot be, None if it is held."""
        assert self._lookup is not None
        key = f"{request.spec.digest}:{request.video}".encode("utf-8", "surrogatepass")
        folder = dataset_path(self._lookup.cache_dir, request.dataset)
        try:
            make_folder(folder.parent)
            make_folder(folder)
            lock.enter_context(single_flight_lock(folder, key))
        except StoreError as exc:
            return exc
        return None

    def _encode(
        self, request: FeatureRequest, unusable: FeatstoreError | None = None
    ) -> EncodedVideo:
        if request.path is not None:
            return self.on_demand.encode(Video(request.video, request.path), request.spec.sampling)
        if unusable is not None:
            raise unusable
        where = f" in dataset {request.dataset!r}" if self._lookup else ", as there is no cache,"
        raise FeatureNotFound(
            f"video {request.video!r} is not stored{where} and no path came with it; pass path= with its file"
        )

    def _store(
        self, encoded: EncodedVideo, request: FeatureRequest
    ) -> Features | FeatstoreError | None:
        """Store features and return them as they are stored; what hinders that, if it does."""
        assert self._lookup is not None
        cache_dir, encoder = self._lookup.cache_dir, self._encoder
        place = cache_dir, request.dataset, request.spec, encoder.origin
        store = partial(store_features, storage=self._storage, names=encoder.names)
        try:
            try:
                store(encoded, *place)
            except StoreMismatch:  # if another process made the set just now, it is followed
                store(encoded, *place)
        except (QuantizeError, RecordError) as exc:
            say(f"{request.path}: {exc}; its features are used, but not stored")
            return None
        except StoreError as exc:
            return exc
        if self._describe is None or not self._describe.alive:
            # Once, at `close` or when the process ends, not for each video.
            self._describe = weakref.finalize(self, _describe_store, cache_dir)
        return self._find(request)

    def _stores_in(self, dataset: str) -> bool:
        return self._stores and dataset not in self._given_up

    def _stored(self, features: Features) -> VisualInput:
        self._statistics.add(hits=1)
        return self._visual(features)

    def _visual(self, features: Features) -> VisualInput:
        header = features.header

        def load() -> torch.Tensor:
            with self._statistics.timed("seconds_reading"):
                self._statistics.add(bytes_read=header.raw_bytes + header.scale_bytes)
                loaded = to_tensor(features, device=self._device, dtype=self._dtype)
            if not fits(header.dtype, self._dtype):
                refuse_too_large(loaded, f"the stored features of video {header.video_id!r}")
            return loaded

        identity = (
            header.dataset,
            header.video_id,
            header.spec,
            header.payload_xxh3,
            header.created,
        )
        return VisualInput(features.shape[0], load, identity, SampledClip.of_header(header))

    def _unstored(self, encoded: EncodedVideo) -> VisualInput:
        features = encoded.features(self._dtype)
        clip = SampledClip.of_encoded(encoded, self._encoder.identity.geometry)
        return VisualInput(len(features), lambda: features, clip=clip)


def _describe_store(cache_dir: str | os.PathLike[str]) -> None:
    with suppress(FeatstoreError):  # the file is for people to read; the features are safe
        write_cache_meta(cache_dir)
