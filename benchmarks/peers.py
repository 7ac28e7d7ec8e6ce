"""Ways to keep features: featstore, and what one would otherwise use.

A peer writes all videos once, opens a reader, and gets or reads one video in the way its library documents. int8 peers
give values and scale, as featstore does; bf16 peers the finished features, in twice the bytes.
"""

from __future__ import annotations

import dataclasses
import pickle
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lmdb
import numpy as np
import safetensors.torch
import torch

from featstore.encoders.toy import ToyEncoder
from featstore.geometry import Geometry
from featstore.records.header import Header, SourceFingerprint
from featstore.records.quantization import QuantError
from featstore.records.record import pack_record
from featstore.records.storage import MAX_HEADER_BYTES, Storage
from featstore.sampling import Sampling
from featstore.spec import FeatureSpec
from featstore.store.reader import FeatureStore
from featstore.store.writer import FeatureWriter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

DATASET = "bench"
_BATCH_BYTES = 64 << 20


@dataclass(frozen=True)
class Videos:
    """Synthetic features, drawn anew whenever they are asked for: memory holds one video at a time."""

    count: int
    frames: int
    tokens_per_frame: int
    hidden_dim: int
    granularity: str

    @property
    def ids(self) -> list[str]:
        return [f"video_{i:06d}" for i in range(self.count)]

    @property
    def shape(self) -> tuple[int, int]:
        return self.frames * self.tokens_per_frame, self.hidden_dim

    @property
    def scale_shape(self) -> tuple[int, int]:
        [shape] = self.storage.scale_shapes(*self.shape)
        return shape

    @property
    def storage(self) -> Storage:
        return Storage("int8", self.granularity)

    def parts(self, video: str, dtype: str = "int8") -> dict[str, torch.Tensor]:
        """Return values and scale of `video` for int8, the dequantized values for bf16."""
        rng = np.random.default_rng(int(video.removeprefix("video_")))
        values = torch.from_numpy(rng.integers(-127, 128, self.shape, np.int8))
        scale = torch.from_numpy(rng.uniform(0.01, 0.1, self.scale_shape).astype(np.float32))
        if dtype == "int8":
            return {"values": values, "scale": scale}
        return {"values": values.float().mul_(scale).bfloat16()}

    def nbytes(self, dtype: str = "int8") -> int:
        """Return the bytes of one video's parts."""
        tokens, dim = self.shape
        rows, columns = self.scale_shape
        return tokens * dim + 4 * rows * columns if dtype == "int8" else 2 * tokens * dim


def as_bytes(part: Any) -> NDArray[np.uint8]:
    """Return the bytes of an array or tensor, flat and without a copy."""
    if isinstance(part, torch.Tensor):
        part = part.view(torch.uint8).numpy()  # numpy has no bf16
    flat: NDArray[np.uint8] = part.reshape(-1).view(np.uint8)
    return flat


def _stack(parts: Sequence[Any]) -> torch.Tensor:
    is_torch = isinstance(parts[0], torch.Tensor)
    return torch.stack(parts) if is_torch else torch.from_numpy(np.stack(parts))


class Peer:
    """One way to keep features.

    name: as the tables have it. dtype: int8 or bf16. needs: the modules it takes.
    opens: whether there is a reader to open; files per video are opened by each lookup.
    warm: whether a hot pass follows one that is not counted, on the same reader.
    """

    name = ""
    dtype = "int8"
    needs: tuple[str, ...] = ()
    opens = True
    warm = True

    def __init__(self, folder: Path, videos: Videos) -> None:
        self.folder = folder
        self.videos = videos

    def write(self) -> None:
        """Write all videos into the folder, which is there and empty."""
        raise NotImplementedError

    def open(self) -> Any:
        """Return a reader, which closes when it is let go of."""
        return None

    def get(self, reader: Any, video: str) -> Sequence[Any]:
        """Return the parts of `video` as arrays or tensors, ready to compute with."""
        raise NotImplementedError

    def read(self, reader: Any, video: str, out: NDArray[np.uint8]) -> None:
        """Fill `out` with the bytes of the parts, one after the other."""
        start = 0
        for part in self.get(reader, video):
            data = as_bytes(part)
            out[start : start + len(data)] = data
            start += len(data)

    def many(self, reader: Any, videos: Sequence[str]) -> NDArray[np.float32]:
        """Return the features of `videos` as one array (videos, rows, width)."""
        parts = zip(*[self.get(reader, video) for video in videos], strict=True)
        values, *scales = map(_stack, parts)
        return (values.float().mul_(scales[0]) if scales else values.float()).numpy()


# --- ours ----------------------------------------------------------------------------------------------------------


class Featstore(Peer):
    name = "featstore, later lookups"
    verify = "first"

    def write(self) -> None:
        videos = self.videos
        toy = ToyEncoder()
        identity = dataclasses.replace(
            toy.identity, geometry=Geometry(videos.tokens_per_frame, videos.hidden_dim)
        )
        spec = FeatureSpec(identity, Sampling(videos.frames), "none", toy.preprocessing)
        payload = slice(MAX_HEADER_BYTES, MAX_HEADER_BYTES + videos.shape[0] * videos.shape[1])
        buffer = np.empty(payload.stop, np.uint8)
        with FeatureWriter(self.folder, DATASET, min_free=0) as writer:
            writer.add_set(spec, videos.storage, origin="bench_get")
            for video in videos.ids:
                values, scale = videos.parts(video).values()
                buffer[payload] = as_bytes(values)
                header = _header(videos, spec, video)
                record = pack_record(header, as_bytes(scale).tobytes(), buffer.data, payload)
                writer.put(*record)
                if writer.due:
                    writer.commit()

    def open(self) -> FeatureStore:
        store = FeatureStore(self.folder, verify=self.verify)
        store[DATASET]  # the environment is opened here
        return store

    def get(self, reader: FeatureStore, video: str) -> Sequence[Any]:
        features = reader[DATASET][video]
        return features.data, *features.scales

    def many(self, reader: FeatureStore, videos: Sequence[str]) -> NDArray[np.float32]:
        found = reader[DATASET].get_many(videos)
        assert not isinstance(found, list)
        return found


class FeatstoreSingly(Featstore):
    name = "featstore, a lookup each"

    def many(self, reader: FeatureStore, videos: Sequence[str]) -> NDArray[np.float32]:
        return np.stack([reader[DATASET][video].numpy() for video in videos])


class FeatstoreFirst(Featstore):
    name = "featstore, first lookup"
    warm = False


class FeatstoreNever(Featstore):
    name = "featstore, verify=never"
    verify = "never"


def _header(videos: Videos, spec: FeatureSpec, video: str) -> Header:
    return Header(
        video_id=video,
        video_path=f"/videos/{video}.mp4",
        dataset=DATASET,
        spec=spec.digest,
        nframe=videos.frames,
        frame_indices=np.arange(videos.frames, dtype="<u4").tobytes(),
        total_frames=videos.frames,
        fps=25.0,
        decoder="none",
        doubt="",
        shape=videos.shape,
        layout=spec.encoder.geometry.layout(videos.frames),
        dtype=spec.encoder.dtype,
        storage=videos.storage,
        source=SourceFingerprint(size=1, mtime_ns=1, xxh3_128="0" * 32),
        error=QuantError(1.0, 0.0, 0.0, 0.0, 0.0),
        created=time.time(),
    )


# --- a file per video ----------------------------------------------------------------------------------------------


class FilePerVideo(Peer):
    opens = False

    def write(self) -> None:
        for video in self.videos.ids:
            self.save(video, self.videos.parts(video, self.dtype))

    def save(self, video: str, parts: dict[str, torch.Tensor]) -> None:
        """Write one video's file or files."""
        raise NotImplementedError

    def path(self, video: str, suffix: str) -> str:
        return f"{self.folder}/{video}{suffix}"


class TorchSave(FilePerVideo):
    name = "torch.save int8"
    mmap = False

    def save(self, video: str, parts: dict[str, torch.Tensor]) -> None:
        torch.save(parts, self.path(video, ".pt"))

    def get(self, reader: None, video: str) -> Sequence[Any]:
        path = self.path(video, ".pt")
        return tuple(torch.load(path, weights_only=True, mmap=self.mmap).values())


class TorchSaveBf16(TorchSave):
    name = "torch.save bf16"
    dtype = "bf16"


class TorchSaveMmap(TorchSave):
    name = "torch.save int8, load(mmap=True)"
    mmap = True


class Safetensors(FilePerVideo):
    name = "safetensors int8"

    def save(self, video: str, parts: dict[str, torch.Tensor]) -> None:
        safetensors.torch.save_file(parts, self.path(video, ".safetensors"))

    def get(self, reader: None, video: str) -> Sequence[Any]:
        parts = safetensors.torch.load_file(self.path(video, ".safetensors"))
        return [parts[name] for name in ("values", "scale") if name in parts]


class SafetensorsBf16(Safetensors):
    name = "safetensors bf16"
    dtype = "bf16"


class NumpyMmap(FilePerVideo):
    name = ".npy, np.load(mmap_mode='r')"

    def save(self, video: str, parts: dict[str, torch.Tensor]) -> None:
        for name, part in parts.items():
            np.save(self.path(video, f".{name}.npy"), part.numpy())

    def get(self, reader: None, video: str) -> Sequence[Any]:
        values = np.load(self.path(video, ".values.npy"), mmap_mode="r")
        return values, np.load(self.path(video, ".scale.npy"))


class RawFile(FilePerVideo):
    """Bytes without a header, read into the buffer in one call: the least a file can cost."""

    name = "plain file, readinto"

    def save(self, video: str, parts: dict[str, torch.Tensor]) -> None:
        with open(self.path(video, ".bin"), "wb") as file:
            for part in parts.values():
                file.write(as_bytes(part).data)

    def get(self, reader: None, video: str) -> Sequence[Any]:
        data = np.fromfile(self.path(video, ".bin"), np.uint8)
        scale_bytes = 4 * self.videos.scale_shape[0] * self.videos.scale_shape[1]
        values, scale = data[:-scale_bytes], data[-scale_bytes:]
        return (
            values.view(np.int8).reshape(self.videos.shape),
            scale.view(np.float32).reshape(self.videos.scale_shape),
        )

    def read(self, reader: None, video: str, out: NDArray[np.uint8]) -> None:
        with open(self.path(video, ".bin"), "rb", buffering=0) as file:
            file.readinto(out.data)


# --- one file for all ----------------------------------------------------------------------------------------------


class HuggingFace(Peer):
    """A column of bytes: a column of int8 arrays comes back as int64, eight times the memory."""

    name = "HF datasets"
    needs = ("datasets",)

    def write(self) -> None:
        import datasets

        datasets.disable_progress_bars()
        columns = {"video": "string", "values": "large_binary", "scale": "large_binary"}
        made = datasets.Dataset.from_generator(
            self._rows,
            features=datasets.Features({k: datasets.Value(v) for k, v in columns.items()}),
            cache_dir=str(self.folder / "cache"),
            writer_batch_size=max(1, _BATCH_BYTES // self.videos.nbytes()),
        )
        made.save_to_disk(self.folder / "dataset")
        del made
        shutil.rmtree(self.folder / "cache")

    def open(self) -> tuple[Any, dict[str, int]]:
        import datasets

        loaded = datasets.load_from_disk(self.folder / "dataset")
        rows = {video: i for i, video in enumerate(loaded.data.column("video").to_pylist())}
        return loaded, rows

    def get(self, reader: tuple[Any, dict[str, int]], video: str) -> Sequence[Any]:
        loaded, rows = reader
        row = loaded[rows[video]]
        return self._arrays(row["values"], row["scale"])

    def _arrays(self, values: Any, scale: Any) -> Sequence[Any]:
        return (
            np.frombuffer(values, np.int8).reshape(self.videos.shape),
            np.frombuffer(scale, np.float32).reshape(self.videos.scale_shape),
        )

    def _rows(self) -> Iterator[dict[str, Any]]:
        for video in self.videos.ids:
            parts = self.videos.parts(video)
            yield {"video": video, **{k: as_bytes(part).tobytes() for k, part in parts.items()}}


class HuggingFaceArrow(HuggingFace):
    name = "HF datasets, format arrow"

    def open(self) -> tuple[Any, dict[str, int]]:
        loaded, rows = super().open()
        return loaded.with_format("arrow"), rows

    def get(self, reader: tuple[Any, dict[str, int]], video: str) -> Sequence[Any]:
        loaded, rows = reader
        row = loaded[rows[video]]
        return self._arrays(row["values"][0].as_buffer(), row["scale"][0].as_buffer())


class H5py(Peer):
    name = "h5py, contiguous"
    needs = ("h5py",)

    def write(self) -> None:
        import h5py

        with h5py.File(self.folder / "features.h5", "w") as file:
            for video in self.videos.ids:
                for name, part in self.videos.parts(video).items():
                    file.create_dataset(f"{video}/{name}", data=part.numpy(), chunks=None)

    def open(self) -> Any:
        import h5py

        return h5py.File(self.folder / "features.h5", "r")

    def get(self, reader: Any, video: str) -> Sequence[Any]:
        group = reader[video]
        return group["values"][...], group["scale"][...]

    def read(self, reader: Any, video: str, out: NDArray[np.uint8]) -> None:
        group, start = reader[video], 0
        for part in (group["values"], group["scale"]):
            place = out[start : start + part.nbytes].view(part.dtype).reshape(part.shape)
            part.read_direct(place)
            start += part.nbytes


class LmdbPickle(Peer):
    """The cache one writes in an afternoon; loading it runs whatever the pickle says."""

    name = "LMDB + pickle"

    def write(self) -> None:
        with lmdb.open(str(self.folder), map_size=1 << 36, sync=False) as env:
            for video in self.videos.ids:
                with env.begin(write=True) as txn:
                    txn.put(video.encode(), pickle.dumps(self.videos.parts(video), protocol=5))
            env.sync(True)

    def open(self) -> lmdb.Environment:
        return lmdb.open(str(self.folder), readonly=True)

    def get(self, reader: lmdb.Environment, video: str) -> Sequence[Any]:
        with reader.begin() as txn:
            return tuple(pickle.loads(txn.get(video.encode(), b"")).values())


class LmdbBytes(LmdbPickle):
    """LMDB's own get of the bare bytes, for who knows all shapes beforehand; copied, since a view outlives nothing."""

    name = "LMDB, get of bytes"

    def write(self) -> None:
        with lmdb.open(str(self.folder), map_size=1 << 36, sync=False) as env:
            for video in self.videos.ids:
                parts = [as_bytes(part).tobytes() for part in self.videos.parts(video).values()]
                with env.begin(write=True) as txn:
                    txn.put(video.encode(), b"".join(parts))
            env.sync(True)

    def get(self, reader: lmdb.Environment, video: str) -> Sequence[Any]:
        with reader.begin() as txn:
            return self._cut(txn.get(video.encode(), b""))

    def many(self, reader: lmdb.Environment, videos: Sequence[str]) -> NDArray[np.float32]:
        with reader.begin() as txn:
            parts = [self._cut(txn.get(video.encode(), b"")) for video in videos]
        values, scales = (np.stack(part) for part in zip(*parts, strict=True))
        return np.multiply(values, scales, dtype=np.float32)

    def _cut(self, data: bytes) -> Sequence[Any]:
        at = self.videos.shape[0] * self.videos.shape[1]
        values, scale = np.frombuffer(data, np.int8, at), np.frombuffer(data, np.float32, -1, at)
        return values.reshape(self.videos.shape), scale.reshape(self.videos.scale_shape)


OTHERS: tuple[type[Peer], ...] = (
    TorchSave,
    TorchSaveBf16,
    TorchSaveMmap,
    Safetensors,
    SafetensorsBf16,
    NumpyMmap,
    RawFile,
    HuggingFace,
    HuggingFaceArrow,
    H5py,
    LmdbPickle,
    LmdbBytes,
)
