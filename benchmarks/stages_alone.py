"""Each stage of an ingest alone, fed with all it can take: what the whole pipeline is held against."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections import deque
from contextlib import ExitStack
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

import numpy as np

from featstore.decoding.frame_selection import Clip
from featstore.decoding.pool import Decoded, DecoderPool
from featstore.decoding.video_file import Video
from featstore.geometry import Geometry
from featstore.pipeline.make_record import largest_shape, quantize_into, record_room
from featstore.pipeline.write.writer_client import WriterProcess
from featstore.pipeline.write.writer_process import PutRecord, WriterSetup
from featstore.preprocessing import frame_bytes
from featstore.records.header import SourceFingerprint
from featstore.records.quantization import QuantError
from featstore.records.storage import Storage
from featstore.system.processes import Slots

if TYPE_CHECKING:
    from pathlib import Path

    from featstore.encoders.base import Encoder
    from featstore.preprocessing import Preprocessing
    from featstore.sampling import Sampling
    from featstore.spec import FeatureSpec

SOURCE = SourceFingerprint(0, 0, "0" * 32)
WRITER_SLOTS = 3
STORAGE = Storage()
NO_ERROR = QuantError(1.0, 0.0, 0.0, 0.0, 0.0)


def decode_alone(videos: list[Video], spec: FeatureSpec, workers: int) -> float:
    """Return videos a second that the decode workers make when their slots are taken away at once."""
    with ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile())
        slots = Slots.create(workers + 2, spec.sampling.nframe * frame_bytes(spec.preprocessing))
        stack.callback(slots.close)
        pool = DecoderPool(
            slots, spec.sampling, spec.preprocessing, workers=workers, timeout=600, log=log
        )
        stack.callback(pool.kill)
        pool.add(videos)
        begun, ends = time.perf_counter(), []
        while not pool.idle:
            wait(pool.connections, 0.2)
            for decoded in pool.collect():
                if decoded.error:
                    raise RuntimeError(decoded.error)
                ends.append(time.perf_counter())
                pool.release(decoded.slot)
    return steady_rate(begun, ends)


def encode_alone(encoder: Encoder, spec: FeatureSpec, videos: int) -> float:
    """Return videos a second that the encoder makes and quantizes of frames that lie where it computes."""
    step = encoder.batch_frames
    shape = (spec.sampling.nframe, *spec.preprocessing.max_frame, 3)
    frames: Any = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    if getattr(getattr(encoder, "device", None), "type", "") == "cuda":
        return _encode_on_gpu(encoder, frames, videos)
    payload = memoryview(bytearray(STORAGE.payload_bytes(largest_shape(spec))))
    begun, ends = time.perf_counter(), []
    for _ in range(videos + 1):
        parts = [
            encoder.encode(frames[i : i + step]).reshape(-1, largest_shape(spec)[1])
            for i in range(0, len(frames), step)
        ]
        quantize_into(payload, parts, STORAGE)
        ends.append(time.perf_counter())
    return steady_rate(begun, ends)


def _encode_on_gpu(encoder: Any, frames: Any, videos: int) -> float:
    import torch

    from featstore.torch.kernels.quantize import queue_quantize

    step = encoder.batch_frames
    with torch.cuda.device(encoder.device), torch.inference_mode():
        there = torch.from_numpy(frames).to(encoder.device)

        def once() -> None:
            parts = [
                encoder.encode_on_device(there[i : i + step]) for i in range(0, len(there), step)
            ]
            queue_quantize(torch.cat(parts).flatten(0, 1), STORAGE)

        for _ in range(3):
            once()
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(videos):
            once()
        torch.cuda.synchronize()
        return videos / (time.perf_counter() - begun)


def quantize_ms(spec: FeatureSpec, device: Any, repeats: int = 10) -> dict[str, float]:
    """Return milliseconds for quantizing a video and measuring its error: queued, and step by step."""
    import torch

    from featstore.torch.kernels.quantize import measure_error, quantize, queue_quantize

    features = torch.randn(largest_shape(spec), device=device).half()

    def eager() -> None:
        measure_error(features, *quantize(features, STORAGE))

    found = {}
    ways = {
        "queued": lambda: queue_quantize(features, STORAGE),
        "eager": eager,
    }
    for name, way in ways.items():
        way()
        torch.cuda.synchronize(device)
        begun = time.perf_counter()
        for _ in range(repeats):
            way()
        torch.cuda.synchronize(device)
        found[name] = (time.perf_counter() - begun) / repeats * 1e3
    return found


def write_alone(folder: Path, spec: FeatureSpec, records: int) -> float:
    """Return records a second that the writer process commits when a slot is filled again as soon as it is free."""
    room, payload_bytes = record_room(spec, STORAGE)
    begun, ends = time.perf_counter(), []
    with ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile())
        slots = Slots.create(WRITER_SLOTS, room + payload_bytes)
        stack.callback(slots.close)
        for number in range(slots.count):
            _fill(slots.slot(number))
        setup = WriterSetup(
            cache_dir=os.fspath(folder),
            dataset="write-alone",
            spec=spec,
            storage=STORAGE,
            origin="bench",
            names={},
            max_error=None,
            replace_storage=False,
            replace_max_error=False,
            min_free=1 << 20,
            max_size=None,
            lock_wait=1.0,
            slots=slots,
            payload_start=room,
        )
        writer = WriterProcess(setup, log=log)
        stack.callback(writer.close)
        clip = Clip(1000, 25.0, list(range(spec.sampling.nframe)))
        scales = np.ones(STORAGE.scale_bytes(largest_shape(spec)) // 4, "<f4").tobytes()
        free, put = deque(range(slots.count)), 0
        while len(ends) < records:
            while free and put < records:
                video = Video(f"v{put}", f"/v{put}.mp4")
                made = SOURCE, None, STORAGE, scales, NO_ERROR
                writer.put(PutRecord(free.popleft(), video, clip, *made))
                put += 1
            wait(writer.connections)
            for commit in writer.collect():
                free += commit.slots
                ends += [time.perf_counter()] * len(commit.stored)
    return steady_rate(begun, ends)


def write_plainly(folder: Path, spec: FeatureSpec, records: int) -> float:
    """Return records a second where their bytes are appended to a file, synced after each."""
    data = np.empty(sum(record_room(spec, STORAGE)), np.uint8)
    _fill(data.data)
    begun, ends = time.perf_counter(), []
    descriptor = os.open(folder / "plain", os.O_CREAT | os.O_WRONLY)
    try:
        for _ in range(records):
            view = data.data
            while view:
                view = view[os.write(descriptor, view) :]
            os.fdatasync(descriptor)
            ends.append(time.perf_counter())
    finally:
        os.close(descriptor)
        (folder / "plain").unlink()
    return steady_rate(begun, ends)


class FreeFrames:
    """Stands for a DecoderPool whose frames cost nothing: they lie in the slots from the beginning."""

    def __init__(self, slots: Slots, sampling: Sampling, *others: Any, **options: Any) -> None:
        """Fill the slots."""
        self._free = deque(range(slots.count))
        self._videos: deque[Video] = deque()
        preprocessing: Preprocessing = others[0]
        self._clip = Clip(
            sampling.nframe,
            25.0,
            list(range(sampling.nframe)),
            size=preprocessing.max_frame,
        )
        for number in self._free:
            _fill(slots.slot(number))

    connections: tuple[()] = ()

    @property
    def idle(self) -> bool:
        """Return whether every video was handed out."""
        return not self._videos

    def add(self, videos: list[Video]) -> None:
        """Queue videos."""
        self._videos.extend(videos)

    def release(self, slot: int) -> None:
        """Take a slot back."""
        self._free.append(slot)

    def collect(self) -> list[Decoded]:
        """Return as many videos as there are slots for."""
        count = min(len(self._free), len(self._videos))
        return [
            Decoded(self._videos.popleft(), self._free.popleft(), 0.0, self._clip, SOURCE)
            for _ in range(count)
        ]

    def kill(self) -> None:
        """End nothing."""


def steady_rate(begun: float, ends: list[float]) -> float:
    """Return how many things a second ended, once the first fifth had: what starts up slowly counts no more.

    Where all ended at once, as small records do in one commit, since `begun`.
    """
    skipped = max(1, len(ends) // 5)
    first = ends[skipped - 1]
    if ends[-1] == first:
        return len(ends) / (first - begun)
    return sum(end > first for end in ends) / (ends[-1] - first)  # a commit ends several at once


def at_real_size(spec: FeatureSpec) -> FeatureSpec:
    """Return a spec whose records are as large as LongVA-7B's."""
    geometry = Geometry(tokens_per_unit=144, hidden_dim=3584)
    encoder = dataclasses.replace(spec.encoder, geometry=geometry)
    return dataclasses.replace(spec, encoder=encoder)


def _fill(memory: memoryview) -> None:
    block = np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8)
    values = np.frombuffer(memory, np.uint8)
    for start in range(0, len(values), len(block)):
        part = values[start : start + len(block)]
        part[:] = block[: len(part)]
