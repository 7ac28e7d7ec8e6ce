"""Which of a dataset's feature sets serve a model: those its own vision weights made, of the frames it asks for.

How they are stored does not matter, and the dtype they were computed in only if several feature sets serve. Checkpoints
that differ in their language side only share features. Imported features, of which neither is known, serve a model that
was told to accept them, if they are of the shape of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

from featstore.errors import (
    DatasetNotFound,
    FeatureNotFound,
    StoreError,
    StoreMismatch,
    StoreNotFound,
)
from featstore.models.source_options import DECODERS_OF_SETS
from featstore.store.catalog import has_entry, read_set, read_sets
from featstore.store.dataset import Dataset
from featstore.store.lost import explain_lost, name_present
from featstore.store.paths import absolute
from featstore.store.rows import video_key
from featstore.store.selection import describe_mismatch

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from featstore.records.features import Features
    from featstore.spec import FeatureSpec
    from featstore.store.rows import FeatureSet


@dataclass(frozen=True)
class FeatureRequest:
    """Which features are asked for.

    Attributes:
        dataset: the dataset's name.
        video: the video's id.
        path: the video's file, needed if the features are not stored; None if unknown.
        spec: the feature set the model would make.
    """

    dataset: str
    video: str
    path: str | None
    spec: FeatureSpec


class Lookup:
    """Finds features in the datasets of a cache directory; each is opened when it is first asked for."""

    def __init__(self, cache_dir: str | os.PathLike[str], *, accept_imported: bool = False) -> None:
        """Open nothing yet; accept_imported: take imported features if there are no others."""
        self.cache_dir = absolute(cache_dir)
        self._accept_imported = accept_imported
        self._datasets: dict[str, Dataset] = {}

    def find(self, request: FeatureRequest) -> Features | None:
        """Return the stored features, None if there are none; see `find_features`.

        Raises DatasetNotFound if the dataset was there and is lost.
        """
        try:
            return find_features(
                self._open(request.dataset),
                request.video,
                request.spec,
                accept_imported=self._accept_imported,
            )
        except StoreNotFound as exc:
            lost = explain_lost(self.cache_dir, request.dataset)
            if lost:
                raise DatasetNotFound(lost) from exc
            return None

    def refuse(self, request: FeatureRequest, origin: str) -> NoReturn:
        """Raise the error that says why there are none; see `refuse`."""
        try:
            dataset = self._open(request.dataset)
        except StoreNotFound as exc:
            lost = explain_lost(self.cache_dir, request.dataset)
            raise DatasetNotFound(
                lost
                or f"{name_present(self.cache_dir, request.dataset)}; make it with featstore ingest, or have the model "
                "encode what is missing, with on_miss=encode"
            ) from exc
        refuse(dataset, request.video, request.spec, origin)

    def explain(self, request: FeatureRequest, origin: str, follows: str) -> str:
        """Return why a video's features are not there, if it is that none of their kind are, or of other frames.

        Empty if they are missing among others of their kind, and if the store cannot be read.

        Args:
            request: what is asked for.
            origin: the options of `featstore ingest` that name the model's checkpoint.
            follows: what is done about it, for the last line; if empty, that says what the user can do.
        """
        try:
            dataset = self._open(request.dataset)
            sets = dataset.sets.rows()
            if sets and not any(serves(found.spec, request.spec) for found in sets):
                return refusal(sets, dataset, request.spec, origin, follows)
            return _of_other_frames(dataset, request, follows)
        except StoreNotFound:
            return f"{name_present(self.cache_dir, request.dataset)}\n{follows}".rstrip()
        except StoreError:  # storing there will raise it again
            return ""

    def close(self) -> None:
        """Let go of the datasets; a later lookup opens them again."""
        self._datasets.clear()

    def _open(self, name: str) -> Dataset:
        found = self._datasets.get(name)
        if found is None:  # two threads may both open it; the environment is shared anyway
            found = self._datasets[name] = Dataset(self.cache_dir, name)
        return found


def serves(stored: FeatureSpec, wanted: FeatureSpec) -> bool:
    """Return whether features of `stored` may be used in place of those of `wanted`: all but the dtype is equal."""
    encoder = replace(stored.encoder, dtype=wanted.encoder.dtype)
    return replace(stored, encoder=encoder).digest == wanted.digest


def could_serve(stored: FeatureSpec, wanted: FeatureSpec) -> bool:
    """Return whether features of `stored` were imported, and are of the shape of those of `wanted`."""
    shape = replace(wanted.encoder.geometry, grid=None), wanted.sampling.nframe
    return stored.imported and (stored.encoder.geometry, stored.sampling.nframe) == shape


def find_features(
    dataset: Dataset, video: str, wanted: FeatureSpec, *, accept_imported: bool = False
) -> Features | None:
    """Return the stored features of a video, None if there are none.

    Args:
        dataset: the dataset to look in.
        video: the video's id.
        wanted: the feature set they must serve.
        accept_imported: take imported features of their shape if no others serve.

    Raises:
        StoreMismatch: several feature sets serve, and none is of the dtype that `wanted` says; or the dataset has
            several imported ones of the shape, of this video or others.
        RecordError, StoreDamaged: the record or a row is damaged.
    """
    # One for all steps: sets and videos may be removed in the meantime.
    snapshot = dataset.snapshot()
    own = wanted.digest  # if it has the video, no other set's row needs to be whole
    if read_set(snapshot, own) and has_entry(snapshot, video_key(own, video)):
        return dataset.load(snapshot, video, own)
    sets = [found.spec for found in read_sets(snapshot).values()]
    # Only whether the row exists: a damaged row does not make the record unusable.
    there = [spec for spec in sets if has_entry(snapshot, video_key(spec.digest, video))]
    serving = [spec for spec in there if serves(spec, wanted)]
    if not serving and accept_imported:
        serving = [spec for spec in there if could_serve(spec, wanted)]
        # One video of this set and the next of that one would be features of two models.
        if serving:
            _refuse_several(dataset, [spec for spec in sets if could_serve(spec, wanted)])
    if not serving:
        return None
    if len(serving) > 1:
        listed = "".join(f"\n  {spec.describe()}" for spec in serving)
        raise StoreMismatch(
            f"{len(serving)} feature sets have video {video!r} as this model sees it, and none is the one asked for "
            f"({wanted.describe()}); choose with dtype=:{listed}"
        )
    return dataset.load(snapshot, video, serving[0].digest)


def _refuse_several(dataset: Dataset, imported: Sequence[FeatureSpec]) -> None:
    if len(imported) > 1:
        listed = "".join(f"\n  {spec.describe()}" for spec in imported)
        raise StoreMismatch(
            f"dataset {dataset.name!r} has {len(imported)} imported feature sets of the shape that this model takes, "
            f"and nobody knows which it would have made; remove all but one with featstore rm --spec:{listed}"
        )


def serving_set(dataset: Dataset, wanted: FeatureSpec, *, accept_imported: bool = False) -> Dataset:
    """Return the feature set that serves: `wanted` itself, else the oldest that does; StoreMismatch if none does."""
    specs = [found.spec for found in dataset.sets.rows()]
    serving = [spec for spec in specs if serves(spec, wanted)]
    if not serving and accept_imported:
        serving = [spec for spec in specs if could_serve(spec, wanted)]
        _refuse_several(dataset, serving)
    chosen = min(serving, key=lambda spec: spec != wanted, default=wanted)
    return dataset.sets[dataset.select(spec=chosen).spec.digest]


def refuse(dataset: Dataset, video: str, wanted: FeatureSpec, origin: str) -> NoReturn:
    """Raise the error that says why a dataset has no features of a video.

    Args:
        dataset: the dataset.
        video: the video's id.
        wanted: the feature set they would have to serve.
        origin: the options of `featstore ingest` that name the model's checkpoint, for the message.

    Raises:
        FeatureNotFound: the dataset has such features of other videos.
        StoreMismatch: it has none; the message names the fields that differ.
    """
    sets = dataset.sets.rows()
    serving = [found.spec for found in sets if serves(found.spec, wanted)]
    if not serving and sets:
        raise StoreMismatch(refusal(sets, dataset, wanted, origin))
    dataset.lookup(video, spec=min(serving, key=lambda spec: spec != wanted, default=wanted))
    raise FeatureNotFound(f"video {video!r} was stored only now; ask again")


def refusal(
    sets: Sequence[FeatureSet],
    dataset: Dataset,
    wanted: FeatureSpec,
    origin: str,
    follows: str = "",
) -> str:
    """Return the sentence that says why none of `sets` serves: what differs, and what to do or what is done.

    Args:
        sets: feature sets of the dataset, at least one.
        dataset: the dataset.
        wanted: the feature set that they would have to serve.
        origin: the options of `featstore ingest` that name the model's checkpoint.
        follows: what is done about it without the user, in place of what to do.
    """
    sentence = describe_mismatch(sets, dataset.path, wanted, origin, follows)
    for option in dict(_with_other_decoders(sets, wanted)):
        sentence += (
            f" (what is stored, of other frames, is read with {option})"
            if follows
            else f"\nor read what is stored, of other frames: {option}"
        )
    imported = [found.spec.digest[:8] for found in sets if could_serve(found.spec, wanted)]
    if imported:
        sentence += (
            f"\n(set {', '.join(imported)} was imported and has their shape, which is all that is known of it: a model "
            "takes it with accept_imported=True)"
        )
    return sentence


def _of_other_frames(dataset: Dataset, request: FeatureRequest, follows: str) -> str:
    """Return which set has the video as another decoder reads it, without naming the video; empty if none does."""
    snapshot = dataset.snapshot()
    for option, digest in _with_other_decoders(dataset.sets.rows(), request.spec):
        if has_entry(snapshot, video_key(digest, request.video)):
            return (
                f"some videos that are missing are stored as another decoder reads them, in set {digest[:8]} of "
                f"dataset {dataset.name!r}, which is read with {option}\n{follows}"
            ).rstrip()
    return ""


def _with_other_decoders(
    sets: Sequence[FeatureSet], wanted: FeatureSpec
) -> Iterator[tuple[str, str]]:
    """Yield the option of another decoder and the digest of a set that serves with it, for each such set."""
    for identity, decoder in DECODERS_OF_SETS.items():
        if identity != wanted.decoder:
            other = replace(wanted, decoder=identity)
            option = f"decoder={decoder!r}, --decoder {decoder}"
            yield from ((option, found.spec.digest) for found in sets if serves(found.spec, other))
