"""A dataset's features for training and probing.

Read them in the trainer's own process, with `FeatureDataset.batches` or `prefetch`: sending tensors of 66 MB out of
DataLoader workers is 6 times slower. A FeatureDataset also works in such workers, forked or spawned.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.utils.data import Dataset

from featstore.errors import how_many
from featstore.store.reader import FeatureStore, get
from featstore.torch.conversion import check_dtype, to_tensor
from featstore.torch.prefetching import prefetch

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from featstore.records.features import Features
    from featstore.spec import FeatureSpec


class FeatureDataset(Dataset[torch.Tensor]):
    """The videos of one feature set, by number; it holds names only and can be pickled and forked.

    Args:
        cache_dir: the cache directory.
        dataset: name of the dataset in it.
        videos: ids in the order of the numbers; by default all that are stored, sorted.
        nframe: number of frames of the feature set, if not the dataset's default set is meant.
        spec: the feature set, as a FeatureSpec, its digest or a prefix of it, likewise.
        dtype: floating-point dtype of the tensors.

    Raises:
        StoreNotFound: there is no such dataset.
        StoreMismatch: no feature set fits, or several do.
        FeatureNotFound: one of `videos` is not stored in it.
        TypeError, ValueError: `dtype` is none of torch, or not of floating point.
    """

    def __init__(
        self,
        cache_dir: str | os.PathLike[str],
        dataset: str,
        *,
        videos: Sequence[str] | None = None,
        nframe: int | None = None,
        spec: FeatureSpec | str | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """Choose the feature set, and look each of `videos` up in its catalog."""
        check_dtype(dtype)
        self.cache_dir = Path(cache_dir).absolute()
        self.dataset = dataset
        self.dtype = dtype
        with FeatureStore(cache_dir) as store:
            self.digest = store[dataset].select(nframe=nframe, spec=spec).spec.digest
            stored = store[dataset].sets[self.digest]
            self.videos = sorted(stored) if videos is None else list(videos)
            missing = [] if videos is None else [name for name in self.videos if name not in stored]
            if missing:
                stored.lookup(missing[0])  # says why

    def __len__(self) -> int:
        """Return the number of videos."""
        return len(self.videos)

    def __repr__(self) -> str:
        """Return dataset, number of videos, feature set and dtype."""
        kind = str(self.dtype).removeprefix("torch.")
        return (
            f"<featstore.torch.FeatureDataset {self.dataset!r}: {how_many(len(self), 'video')}, "
            f"{self.digest[:8]}, {kind}>"
        )

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return the features of video number `index` on the CPU, (rows, width)."""
        return to_tensor(self.lookup(self.videos[index]), dtype=self.dtype)

    def means(self) -> tuple[list[str], torch.Tensor]:
        """Return the ids, and a matrix (videos, width) float32 of the means of their rows: a row a video."""
        rows = [to_tensor(self.lookup(name), dtype=torch.float32).mean(0) for name in self.videos]
        return list(self.videos), torch.stack(rows) if rows else torch.empty(0, 0)

    def lookup(self, video: str) -> Features:
        """Return the stored features of `video`."""
        return get(self.cache_dir, self.dataset, video, spec=self.digest)

    def read_ahead(self, video: str) -> None:
        """Have the system read the record of `video` into memory, without waiting."""
        FeatureStore(self.cache_dir)[self.dataset].read_ahead(video, spec=self.digest)

    def batches(
        self,
        *,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
        ahead: int = 2,
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield `(video, tensor)` of one video after the other, which differ in rows, prepared ahead in a thread.

        Args:
            device: where the tensors (rows, width) go, the CPU by default.
            generator: draws the order; by default that of `videos`.
            ahead: number of videos prepared ahead.
        """
        order = list(range(len(self)))
        if generator is not None:
            order = torch.randperm(len(self), generator=generator).tolist()
        names = [self.videos[i] for i in order]
        yield from prefetch(self, names, device=device, dtype=self.dtype, ahead=ahead)
