"""Reading: a cache directory as a Mapping of datasets, and `get`, which shares one per process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from featstore.store.dataset import Dataset, check_verify
from featstore.store.paths import absolute, dataset_names

if TYPE_CHECKING:
    from featstore.records.features import Features
    from featstore.spec import FeatureSpec


class FeatureStore(Mapping[str, Dataset]):
    """A cache directory, read-only: `store["demo"]["water"]`.

    Attributes:
        cache_dir: The directory's absolute path.
    """

    def __init__(self, cache_dir: str | os.PathLike[str], *, verify: str = "first") -> None:
        """Open no dataset yet.

        Args:
            cache_dir: The cache directory.
            verify: When a payload's checksum is verified: at the first read of a record in this process (`first`), at
                each (`always`) or at none (`never`). To verify 66 MB takes about 13 ms and reads them from disk.

        Raises:
            StoreNotFound: There is no such directory.
        """
        check_verify(verify)
        dataset_names(cache_dir)
        self.cache_dir = absolute(cache_dir)
        self._verify = verify
        self._datasets: dict[str, Dataset] = {}

    def __getitem__(self, dataset: str) -> Dataset:
        """Return the dataset; raise DatasetNotFound, which lists those there are."""
        found = self._datasets.get(dataset)
        if found is None:  # two threads may both open it: they share what is open anyhow
            found = self._datasets[dataset] = Dataset(self.cache_dir, dataset, verify=self._verify)
        return found

    def __contains__(self, dataset: object) -> bool:
        """Return whether there is such a dataset."""
        return dataset in dataset_names(self.cache_dir)

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the datasets."""
        return iter(dataset_names(self.cache_dir))

    def __len__(self) -> int:
        """Return the number of datasets."""
        return len(dataset_names(self.cache_dir))

    @property
    def specs(self) -> dict[str, list[FeatureSpec]]:
        """Return each dataset's feature sets."""
        return {name: [found.spec for found in self[name].sets.rows()] for name in self}

    def __repr__(self) -> str:
        """Return the directory and its datasets."""
        names = ", ".join(self) or "no dataset"
        return f"<featstore.FeatureStore {str(self.cache_dir)!r}: {names}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by path: opened again where it is loaded."""
        return _reopen, (str(self.cache_dir), self._verify)

    def close(self) -> None:
        """Let go of the datasets; views already taken stay valid, later lookups open them again."""
        self._datasets.clear()

    def __enter__(self) -> FeatureStore:
        """Return the store itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close."""
        self.close()


_shared: dict[str, FeatureStore] = {}


def get(
    cache_dir: str | os.PathLike[str],
    dataset: str,
    video: str,
    *,
    nframe: int | None = None,
    spec: FeatureSpec | str | None = None,
) -> Features:
    """Return the stored features of a video; the reader behind it is shared by the whole process.

    The arrays are read-only views into the store's memory map and stay valid for as long as they are referenced.

    Args:
        cache_dir: The cache directory.
        dataset: The dataset's name.
        video: The video's id.
        nframe: Frames per video of the feature set, if not the dataset's default set is meant.
        spec: The set's FeatureSpec, or four or more first digits of its digest, likewise.

    Returns:
        The features, (rows, width), in the values they are stored in.

    Raises:
        StoreNotFound: There is no such directory; DatasetNotFound, one of these, if it has no such dataset.
        FeatureNotFound: The video was never finished in this feature set.
        StoreMismatch: No feature set fits, or several do.
        RecordError: The record is damaged.
    """
    place = os.path.realpath(cache_dir)
    store = _shared.get(place)
    if store is None:
        store = _shared[place] = FeatureStore(place)
    return store[dataset].lookup(video, nframe=nframe, spec=spec)


def _reopen(cache_dir: str, verify: str) -> FeatureStore:
    return FeatureStore(cache_dir, verify=verify)
