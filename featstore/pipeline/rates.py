"""How long an ingest takes: rates of this machine, measured on some of the videos, or those of another."""

from __future__ import annotations

import tempfile
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from featstore.decoding.video_file import Video
from featstore.errors import FeatstoreError, how_many
from featstore.pipeline.ingest import ingest
from featstore.store.describe import describe_dataset
from featstore.system.cpus import default_workers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from featstore.encoders.base import Encoder
    from featstore.encoders.registry import EncoderRecipe
    from featstore.geometry import Geometry
    from featstore.pipeline.options import IngestOptions
    from featstore.pipeline.summary import Progress
    from featstore.records.storage import Storage
    from featstore.sampling import Sampling

# What 128 frames took elsewhere, see benchmarks/results: bench_decode (720p of 5 minutes and HEVC of one, on a core of
# an AMD EPYC) and bench_ingest (LongVA-7B's vision side on an H100; 16 frames take an eighth).
_DECODE_SECONDS = (2.56 / 128, 8.57 / 128)
_ENCODE_SECONDS = 1 / 7.19 / 128
_LONGVA_7B = (144, 3584)
_SAMPLE = 8  # videos, or two for each decoder if these are more
_SAMPLE_SECONDS = 60.0


@dataclass(frozen=True)
class Rates:
    """Seconds that a frame which is taken costs each stage, and where that was measured.

    Attributes:
        source: where, for people.
        decode: of a decoder process, least and most.
        encode: of an encoder, None if it is not known.
        write: of the writer.
        together: of all that ran side by side, a start included; 0 if only stages alone were measured.
        start: seconds before the first frame.
        videos: number of videos they were measured on here; 0 for another machine's.
        record_bytes: bytes of a record that a frame takes; 0 if that was not measured.
    """

    source: str
    decode: tuple[float, float]
    encode: float | None
    write: float = 0.0
    together: float = 0.0
    start: float = 0.0
    videos: int = 0
    record_bytes: float = 0.0

    def seconds(self, frames: int, workers: int, encoders: int) -> tuple[float, float]:
        """Return what `frames` take, least and most: as long as the slowest stage.

        Args:
            frames: number of frames taken, of all videos.
            workers: decoder processes.
            encoders: devices that encode.
        """
        beside = max((self.encode or 0.0) / encoders, self.write)
        least, most = (max(decode / workers, beside) for decode in self.decode)
        return self.start + frames * least, self.start + frames * max(most, self.together)


def known_rates(geometry: Geometry) -> Rates:
    """Return rates that were measured on another machine; that of the encoder only if it is LongVA-7B's."""
    is_longva = (geometry.tokens_per_unit, geometry.row_width) == _LONGVA_7B
    return Rates(
        "other machines: 128 frames of a clip take 2.6 to 8.6 s of one core (AMD EPYC; H.264 and HEVC, 720p), "
        + (
            "and 0.14 s of an H100" if is_longva else "and how long this encoder takes is not known"
        ),
        _DECODE_SECONDS,
        _ENCODE_SECONDS if is_longva else None,
    )


def measure_rates(
    videos: Sequence[Video],
    *,
    encoder: Encoder | list[EncoderRecipe],
    sampling: Sampling,
    storage: Storage,
    options: IngestOptions,
    stop: threading.Event,
    on_progress: Callable[[Progress], None] | None = None,
) -> Rates:
    """Return the rates of an ingest of some of the videos into a temporary folder, which takes a minute at most or so.

    Args:
        videos: what is to be ingested; every so many-th is.
        encoder: as for `ingest`.
        sampling: which frames are taken.
        storage: how features are stored.
        options: how the work is done.
        stop: set it to end early.
        on_progress: as for `ingest`.

    Raises:
        FeatstoreError: not a single video was finished; it says why.
    """
    count = max(_SAMPLE, 2 * (options.workers or default_workers()))
    step = max(1, len(videos) // count)
    sample = [Video(str(i), video.path) for i, video in enumerate(videos[::step][:count])]
    alone = replace(options, limit=None, min_free=0, max_size=None, replace_storage=False)
    with tempfile.TemporaryDirectory(prefix="featstore-plan-") as folder:
        summary = ingest(
            sample,
            folder,
            "sample",
            encoder=encoder,
            sampling=sampling,
            storage=storage,
            options=alone,
            stop=_Deadline(stop, _SAMPLE_SECONDS),
            on_progress=on_progress,
        )
        if not summary.stored:
            why = summary.full or (summary.failures[0].reason if summary.failures else "")
            raise FeatstoreError(
                f"none of {how_many(len(sample), 'video')} was finished in {summary.seconds:.0f} s, so no rate "
                "could be measured" + (f": {why}" if why else ""),
                remedy="leave out --measure",
            )
        (found,) = describe_dataset(folder, "sample", rows=False)["feature_sets"]
    frames, busy = found["frames"], summary.busy
    return Rates(
        source=f"this machine, measured on {summary.stored} of the videos",
        decode=(busy["decode"] / frames,) * 2,
        encode=busy["encode"] / frames,
        write=busy["write"] / frames,
        together=summary.working_seconds / frames,
        start=summary.seconds - summary.working_seconds,
        videos=summary.stored,
        record_bytes=summary.record_bytes / frames,
    )


class _Deadline(threading.Event):
    """Is set when another event is, or some seconds after it was made."""

    def __init__(self, stop: threading.Event, seconds: float) -> None:
        super().__init__()
        self._stop, self._end = stop, time.monotonic() + seconds

    def is_set(self) -> bool:
        return self._stop.is_set() or time.monotonic() > self._end
