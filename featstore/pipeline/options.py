"""The options of an ingest beside what it makes: how it works, what it leaves out, how much room it may take."""

from __future__ import annotations

from dataclasses import dataclass

from featstore import defaults
from featstore.decoding.video_file import DECODERS
from featstore.records.budget import ErrorBudget

ON_CLASH = ("skip", "error")


@dataclass(frozen=True)
class IngestOptions:
    """How `featstore.ingest` works; none of it changes what the encoder computes.

    Attributes:
        workers: decode processes; None for one a core.
        decode_timeout: seconds a video may take to decode.
        decode_memory: bytes a decode process may take beside its frames.
        decoder: `auto`, `av` or `decord`, whose frames are the same bytes, or `exact`; see
            featstore.decoding.video_file.decode.
        resume: leave out the videos that are stored, or that failed before; False makes all again.
        retry_failed: try the videos again that failed before, also if nothing of their files changed: what failed them
            may be one of these options.
        replace_storage: if the feature set is stored in another way than asked for, store it as asked from now on, and
            make again the videos that are stored in another way.
        max_error: the error budget, the most that the 99th percentile of the tokens' relative L2 may be of a video, as
            0.02; math.inf for none; None for the feature set's, or 0.02 if there is none yet. It holds for videos that
            are made from now on.
        on_max_error: what becomes of a video that misses it: `lossless`, it is stored as it was computed; `warn`, it is
            stored all the same; `fail`.
        on_clash: what becomes of a video whose id is that of another file, which is stored and still there: `skip`, it
            is left out and named in the summary; `error`, nothing is ingested.
        limit: ingest so many videos at most; None for all.
        min_free: bytes that stay free on the disk.
        max_size: bytes the cache directory may take; None for no limit.
        lock_wait: seconds to wait for another ingest of the dataset.
        dry_run: return the plan's summary and store nothing.

    >>> IngestOptions(workers=0)
    Traceback (most recent call last):
    ValueError: workers is 0; it must be at least 1
    """

    workers: int | None = defaults.DECODE_WORKERS
    decode_timeout: float = defaults.DECODE_TIMEOUT
    decode_memory: int = defaults.DECODE_MEMORY
    decoder: str = defaults.DECODER
    resume: bool = True
    retry_failed: bool = False
    replace_storage: bool = False
    max_error: float | None = None
    on_max_error: str = defaults.ON_MAX_ERROR
    on_clash: str = defaults.ON_CLASH
    limit: int | None = None
    min_free: int = defaults.MIN_FREE_BYTES
    max_size: int | None = None
    lock_wait: float = defaults.LOCK_WAIT
    dry_run: bool = False

    def __post_init__(self) -> None:
        """Refuse values that no ingest can work with."""
        if self.decoder not in DECODERS:
            raise ValueError(f"decoder is {self.decoder!r}; use one of {', '.join(DECODERS)}")
        if self.on_clash not in ON_CLASH:
            raise ValueError(f"on_clash is {self.on_clash!r}; use one of {', '.join(ON_CLASH)}")
        ErrorBudget(self.max_error, self.on_max_error)
        if not self.decode_timeout > 0:
            raise ValueError(f"decode_timeout is {self.decode_timeout} s; it must be above 0")
        least = {"workers": 1, "decode_memory": 1, "limit": 0, "max_size": 0, "lock_wait": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and not value >= bound:
                raise ValueError(f"{name} is {value}; it must be at least {bound}")
