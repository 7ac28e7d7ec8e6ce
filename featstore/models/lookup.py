"""Which of a dataset's feature sets serve a model: those its own vision weights made, of the frames it asks for.

In what numbers they were computed and how they are stored is the store's affair, as long as there is no choice. The
tower's name plays no part either: checkpoints that speak differently share features where they see alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

from featstore.errors import FeatureNotFound, StoreError, StoreMismatch, StoreNotFound
from featstore.store.catalog import has_entry, read_sets, video_key
from featstore.store.dataset import Dataset
from featstore.store.paths import absolute
from featstore.store.selection import describe_mismatch

if TYPE_CHECKING:
    import os

    from featstore.records.record import Features
    from featstore.spec import FeatureSpec


@dataclass(frozen=True)
class Wanted:
    """A video's features, as they are asked for. path: its file; needed where they are not stored."""

    dataset: str
    video: str
    path: str | None
    spec: FeatureSpec


class Lookup:
    """Finds features in the datasets of a cache directory, each opened when it is first asked for."""

    def __init__(self, cache_dir: str | os.PathLike[str]) -> None:
        """Open nothing yet."""
        self.cache_dir = absolute(cache_dir)
        self._datasets: dict[str, Dataset] = {}

    def find(self, wanted: Wanted) -> Features | None:
        """Return the stored features, None where there are none; see `find_features`."""
        try:
            return find_features(self._open(wanted.dataset), wanted.video, wanted.spec)
        except StoreNotFound:
            return None

    def refuse(self, wanted: Wanted, origin: str) -> NoReturn:
        """Raise what says why there are none; see `refuse`."""
        try:
            dataset = self._open(wanted.dataset)
        except StoreNotFound as exc:
            raise StoreNotFound(
                f"there is no dataset {wanted.dataset!r} in {self.cache_dir}; make it with featstore ingest, or have "
                "the model encode what is missing, with on_miss='encode'"
            ) from exc
        refuse(dataset, wanted.video, wanted.spec, origin)

    def mismatch(self, wanted: Wanted, origin: str) -> str:
        """Return why no feature set of the dataset serves; nothing where one does, or there is none."""
        try:
            dataset = self._open(wanted.dataset)
            sets = dataset.sets()
        except StoreError:  # whoever stores there will say so
            return ""
        if not sets or any(serves(found.spec, wanted.spec) for found in sets):
            return ""
        return describe_mismatch(sets, dataset.path, wanted.spec, origin)

    def close(self) -> None:
        """Let go of the datasets; a later look-up opens them again."""
        self._datasets.clear()

    def _open(self, name: str) -> Dataset:
        found = self._datasets.get(name)
        if found is None:  # two threads may both open it: they share what is open anyhow
            found = self._datasets[name] = Dataset(self.cache_dir, name)
        return found


def serves(stored: FeatureSpec, wanted: FeatureSpec) -> bool:
    """Return whether features of `stored` may stand for those of `wanted`."""
    named = replace(
        stored.encoder, vision_tower=wanted.encoder.vision_tower, dtype=wanted.encoder.dtype
    )
    return (named, stored.sampling, stored.decoder) == (
        wanted.encoder,
        wanted.sampling,
        wanted.decoder,
    )


def find_features(dataset: Dataset, video: str, wanted: FeatureSpec) -> Features | None:
    """Return the stored features of `video` that serve `wanted`, None where there are none.

    Raises StoreMismatch where several do and none is stored as `wanted` says, RecordError where they are damaged.
    """
    snapshot = dataset.snapshot()  # one for all: sets and videos may be removed meanwhile
    specs = [
        found.spec
        for found in read_sets(snapshot).values()
        if serves(found.spec, wanted)
        # Only whether the row is there: a damaged one is no reason to refuse a whole record.
        and has_entry(snapshot, video_key(found.spec, dataset.name, video))
    ]
    if not specs:
        return None
    return dataset.load(snapshot, video, _prefer(specs, video, wanted))


def refuse(dataset: Dataset, video: str, wanted: FeatureSpec, origin: str) -> NoReturn:
    """Raise what says why `dataset` has no features of `video` for a model from the checkpoint `origin`.

    FeatureNotFound where it has such features of other videos, StoreMismatch with the fields that differ where not.
    """
    sets = dataset.sets()
    serving = [found.spec for found in sets if serves(found.spec, wanted)]
    if not serving and sets:
        raise StoreMismatch(describe_mismatch(sets, dataset.path, wanted, origin))
    dataset.lookup(video, spec=min(serving, key=lambda spec: spec != wanted, default=wanted))
    raise FeatureNotFound(f"video {video!r} was stored only now; ask again")


def _prefer(specs: list[FeatureSpec], video: str, wanted: FeatureSpec) -> FeatureSpec:
    stored = [
        spec
        for spec in specs
        if (spec.quantization, spec.scale) == (wanted.quantization, wanted.scale)
    ]
    specs = stored or specs
    specs = [spec for spec in specs if spec.encoder.dtype == wanted.encoder.dtype] or specs
    if len(specs) == 1:
        return specs[0]
    listed = "".join(f"\n  {spec.describe()}" for spec in specs)
    raise StoreMismatch(
        f"{len(specs)} feature sets have video {video!r} as this model sees it, and none is the one asked for "
        f"({wanted.describe()}); choose with quantization=, scale= and dtype=:{listed}"
    )
