"""The records that bench_read_gpu and bench_cpu read, and the same features as files one would otherwise keep.

Values are drawn as quantized features look where channels and tokens are unequal, some five bits of entropy a value, so
that codecs have something to do; for all else it makes no difference what the bytes are.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import measure  # noqa: F401  this checkout's featstore, whatever is installed
import numpy as np
import torch
from safetensors.torch import save_file

from featstore.encoders.toy import ToyEncoder
from featstore.geometry import Geometry
from featstore.records.header import Header, SourceFingerprint
from featstore.records.quantization import QuantError
from featstore.records.record import pack_record
from featstore.records.storage import Storage
from featstore.sampling import Sampling
from featstore.spec import FeatureSpec
from featstore.store.writer import FeatureWriter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

DIM, TOKENS_A_FRAME = 3584, 144
ROOM = 1 << 20


@dataclass(frozen=True)
class Records:
    """So many videos of so many frames; the values of one differ from the next one's by their place."""

    videos: int
    frames: int

    @property
    def names(self) -> list[str]:
        return [f"v{i}" for i in range(self.videos)]

    @property
    def shape(self) -> tuple[int, int]:
        return self.frames * TOKENS_A_FRAME, DIM

    @property
    def nbytes(self) -> int:
        return self.shape[0] * DIM

    def values(self) -> Iterator[NDArray[np.int8]]:
        """Yield the int8 values of each video."""
        rng = np.random.default_rng(0)
        drawn = rng.standard_normal(self.shape, dtype=np.float32)
        drawn *= 6 * np.exp(0.5 * rng.standard_normal((1, DIM), dtype=np.float32))
        drawn *= np.exp(rng.standard_normal((self.shape[0], 1), dtype=np.float32))
        first = np.clip(np.rint(drawn, out=drawn), -127, 127, out=drawn).astype(np.int8)
        for i in range(self.videos):
            yield np.roll(first, i, axis=0)

    def scale(self) -> NDArray[np.float32]:
        """Return the scale of all, one a channel."""
        return np.random.default_rng(1).uniform(0.001, 0.1, size=(1, DIM)).astype(np.float32)

    def token_scale(self) -> NDArray[np.float32]:
        """Return the scale of all, one a token, of those that have one."""
        rng = np.random.default_rng(2)
        return rng.uniform(0.5, 2, size=(self.shape[0], 1)).astype(np.float32)


def write_store(
    folder: Path, dataset: str, records: Records, codec: str, kind: str = "int8/channel"
) -> int:
    """Write the records to a dataset, as int8 with such scales or as bf16; return the bytes of the last one."""
    toy = ToyEncoder()
    encoder = dataclasses.replace(
        toy.identity,
        geometry=Geometry(TOKENS_A_FRAME, DIM),
        dtype="bf16" if kind == "bf16" else "fp16",
    )
    spec = FeatureSpec(encoder, Sampling(records.frames), "none", toy.preprocessing)
    storage = Storage(*kind.split("/"), codec=codec)
    header = _header(spec, storage, dataset)
    buffer = memoryview(bytearray(ROOM + storage.payload_bytes(records.shape)))
    scales = {"channel": [records.scale()], "none": []}
    scales["channel_token"] = [records.token_scale(), records.scale()]
    scale = b"".join(each.tobytes() for each in scales[storage.granularity])
    stored = 0
    with FeatureWriter(folder, dataset, min_free=1 << 30) as writer:
        writer.add_set(spec, storage, origin="random")
        for name, values in zip(records.names, records.values(), strict=True):
            named = dataclasses.replace(header, video_id=name)
            if storage.values == "bf16":
                whole = torch.from_numpy(values).float() * torch.from_numpy(records.scale())
                values = whole.to(torch.bfloat16).view(torch.int16).numpy()
            buffer[ROOM:] = memoryview(values).cast("B")
            payload = slice(ROOM, len(buffer))
            stored = writer.put(*pack_record(named, scale, buffer, payload)).record_bytes
            writer.commit()
    return stored


def write_files(folder: Path, records: Records) -> None:
    """Write a .pt and two .safetensors files a video: int8 with its scale, and finished bf16."""
    scale = torch.from_numpy(records.scale())
    for name, values in zip(records.names, records.values(), strict=True):
        data = {"data": torch.from_numpy(values), "scale": scale}
        torch.save(data, folder / f"{name}.pt")
        save_file(data, folder / f"{name}.int8.safetensors")
        whole = (data["data"].float() * scale).to(torch.bfloat16)
        save_file({"features": whole}, folder / f"{name}.bf16.safetensors")


def _header(spec: FeatureSpec, storage: Storage, dataset: str) -> Header:
    frames = spec.sampling.nframe
    return Header(
        video_id="",
        video_path="",
        dataset=dataset,
        spec=spec.digest,
        nframe=frames,
        frame_indices=np.arange(frames, dtype="<u4").tobytes(),
        total_frames=frames,
        fps=1.0,
        decoder="none",
        doubt="",
        shape=(spec.max_rows, spec.encoder.geometry.row_width),
        layout=spec.encoder.geometry.layout(frames),
        dtype=spec.encoder.dtype,
        storage=storage,
        source=SourceFingerprint(0, 0, ""),
        error=QuantError(1.0, 0.0, 0.0, 0.0, 0.0),
        created=0.0,
    )
