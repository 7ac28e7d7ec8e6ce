"""Reading: a cache directory as a Mapping of datasets, and `get`, which shares one per process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from featstore.errors import DatasetNotFound, MissingExtra, StoreError
from featstore.store.catalog import check_verify
from featstore.store.dataset import Dataset
from featstore.store.lost import refuse_no_cache
from featstore.store.paths import absolute, dataset_names
from featstore.store.rows import Entry
from featstore.store.shards.remote.bucket import is_url
from featstore.store.shards.remote.connection import connect, find_dataset
from featstore.system.filesystems import parse_bytes

if TYPE_CHECKING:
    from pandas import DataFrame

    from featstore.records.features import Features
    from featstore.spec import FeatureSpec


class FeatureStore(Mapping[str, Dataset]):
    """A cache directory, read-only: a Mapping of datasets, each of which is one of videos to features.

    Also called `featstore.open`. It opens a dataset when it is first asked for, and is usable in `with`.

    >>> import featstore
    >>> store = featstore.open("vision_cache")
    >>> list(store), list(store["demo"])
    (['demo'], ['water'])
    >>> store["demo"]["water"]
    <featstore.Features 'water': 16 x 8, int8/channel_token>

    Args:
        cache_dir: The cache directory; with `local`, also the URL of datasets that were pushed, as
            `s3://bucket/prefix`, or a cache directory of sealed shards on a network file system.
        verify: When a payload's checksum is verified: at the first read of a record in this process (`first`), at each
            (`always`) or at none (`never`). To verify 66 MB takes about 13 ms and reads them from disk.
        local: A folder on a local disk into which records are fetched when they are read; from then on it is a cache
            directory like any other, by whose path the same datasets are opened.
        max_size: What these records may take, in bytes or as "200GB"; by default as before, or 200 GiB. Those used
            longest ago are removed.

    Raises:
        StoreNotFound: There is no such directory, or no such bucket, or it holds no dataset but other things.
        StoreMismatch: `local` has records of another place.
        StoreError: The server does not answer, or refuses.
        MissingExtra: obstore is not installed.
        ValueError: There is no such way to verify, or such a size.

    Attributes:
        cache_dir: The directory's absolute path; that of `local` if it was given.
    """

    def __init__(
        self,
        cache_dir: str | os.PathLike[str],
        *,
        verify: str = "first",
        local: str | os.PathLike[str] | None = None,
        max_size: int | str | None = None,
    ) -> None:
        """Open no dataset yet; see the class."""
        check_verify(verify)
        if local is not None:
            most = None if max_size is None else parse_bytes(max_size)
            cache_dir = connect(cache_dir, local, most)
        elif is_url(cache_dir) or max_size is not None:
            raise StoreError(
                f"{cache_dir} is opened without a folder to fetch records into",
                remedy="name one on a local disk: featstore.open(URL, local=FOLDER)",
            )
        else:
            refuse_no_cache(cache_dir)
        self.cache_dir = absolute(cache_dir)
        self._verify = verify
        self._datasets: dict[str, Dataset] = {}

    def __getitem__(self, dataset: str) -> Dataset:
        """Return the dataset; raise DatasetNotFound, which lists those there are."""
        found = self._datasets.get(dataset)
        if found is None:  # two threads may both open it: they share what is open anyhow
            try:
                found = Dataset(self.cache_dir, dataset, verify=self._verify)
            except DatasetNotFound:  # pushed since, perhaps, or a web server does not list it
                if not find_dataset(self.cache_dir, dataset):
                    raise
                found = Dataset(self.cache_dir, dataset, verify=self._verify)
            self._datasets[dataset] = found
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

    def to_dataframe(self) -> DataFrame:
        """Return a pandas DataFrame with a row for each video of each feature set, from the catalogs alone.

        Columns are those of `Dataset.rows`; `created` is a time in UTC. Sort and group it by `dataset`, `feature_set`.

        Raises:
            MissingExtra: pandas is not installed.
            StoreError: A dataset cannot be read.
        """
        try:
            import pandas
        except ImportError as exc:
            raise MissingExtra(
                "pandas is not installed, which a DataFrame is of: pip install pandas; "
                "Dataset.rows() yields the same rows as dicts"
            ) from exc
        names = ("dataset", "feature_set", *Entry._fields[1:])
        rows = (row for name in self for found in self[name].sets.values() for row in found.rows())
        frame = pandas.DataFrame(rows, columns=names)
        frame["created"] = pandas.to_datetime(frame["created"], unit="s", utc=True)
        return frame

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

    >>> import featstore
    >>> features = featstore.get("vision_cache", "demo", "water")
    >>> features.shape, features.data.dtype, features.numpy().dtype
    ((16, 8), dtype('int8'), dtype('float32'))

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
    place = str(cache_dir) if is_url(cache_dir) else os.path.realpath(cache_dir)
    store = _shared.get(place)
    if store is None:
        store = _shared[place] = FeatureStore(place)
    return store[dataset].lookup(video, nframe=nframe, spec=spec)


def _reopen(cache_dir: str, verify: str) -> FeatureStore:
    return FeatureStore(cache_dir, verify=verify)
