"""Which store a model reads, which decoder's frames, and what becomes of a miss: checked before anything is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass

from featstore import defaults
from featstore.decoding.video_file import identity_of
from featstore.errors import StoreError
from featstore.records.storage import Storage, storage_for

ON_MISS = ("encode", "encode-only", "error")
# Whose features a model may ask for; those of the other two decoders are auto's.
DECODERS_OF_SETS = {identity_of(name): name for name in ("auto", "exact")}


@dataclass(frozen=True)
class SourceOptions:
    """Where features come from.

    Attributes:
        cache_dir: the store; None to encode each time.
        on_miss: what to do about a video that is not stored, one of ON_MISS.
        decoder: `auto` or `exact`, whose frames the features are of; see featstore.decoding.video_file.decode.
        decode_timeout: seconds that decoding a video may take.
        storage: how a feature set is stored that a miss makes, a Storage or `lossless`; `Storage()` if None.
        accept_imported: whether imported features of the right shape are taken, if there are no others; nobody knows
            what computed them.

    Raises:
        ValueError: an option is none of these.
        StoreError: `cache_dir` is a file.
    """

    cache_dir: str | os.PathLike[str] | None = None
    on_miss: str = defaults.ON_MISS
    decoder: str = defaults.DECODER
    decode_timeout: float = defaults.DECODE_TIMEOUT
    storage: Storage | str | None = None
    accept_imported: bool = False

    def __post_init__(self) -> None:
        """Refuse values that no source can work with."""
        choices = {"on_miss": ON_MISS, "decoder": tuple(DECODERS_OF_SETS.values())}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; use one of {', '.join(known)}"
                )
        if not self.decode_timeout > 0:
            raise ValueError(f"decode_timeout is {self.decode_timeout} s; it must be above 0")
        storage_for(self.storage, "fp32")
        if not isinstance(self.accept_imported, bool):
            raise ValueError(f"accept_imported is {self.accept_imported!r}; pass True or False")
        if self.cache_dir is None:
            return
        if os.path.exists(self.cache_dir) and not os.path.isdir(self.cache_dir):
            raise StoreError(
                f"{os.fspath(self.cache_dir)} is a file; name the folder that holds the datasets"
            )
