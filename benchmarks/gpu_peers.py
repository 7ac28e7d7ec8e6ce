"""Other ways to bring int8 values and their scale from a file a video to a GPU, each at its best, for bench_read_gpu.

Each takes the paths of one or of several files and returns the tensors (values, scale) of each; what they return is
dequantized by featstore's kernel. fastsafetensors, InstantTensor and kvikio are measured where they are installed:
loaders of whole models, whose set-up costs more than a record. On an H100 the first two took 63.5 and 108 ms for the
values alone, where eight threads that pread take 2.7.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from large_records import Records

    Pair = tuple[torch.Tensor, torch.Tensor]
    Peer = Callable[[list[Path]], list[Pair]]

THREADS, CHUNKS = 8, 32


def write_peer_files(folder: Path, records: Records) -> None:
    """Write two files a video: `.bytes`, values and then scale, and `.safetensors`, whose tensors have its name."""
    scale = records.scale()
    for name, values in zip(records.names, records.values(), strict=True):
        with open(folder / f"{name}.bytes", "wb") as file:
            file.write(memoryview(values).cast("B"))
            file.write(scale.tobytes())
        tensors = {f"{name}.values": torch.from_numpy(values), f"{name}.scale": torch.tensor(scale)}
        save_file(tensors, folder / f"{name}.safetensors")


def peers_of_bytes(shape: tuple[int, int]) -> dict[str, Peer]:
    """Return the ways that read `.bytes` of values of `shape`."""
    found: dict[str, Peer] = {
        f"{THREADS} threads pread into pinned": ThreadsThatRead(shape),
        "np.memmap, to": lambda paths: [_mapped(path, shape) for path in paths],
        "read into pinned, to": _WholeRead(shape),
    }
    try:
        import kvikio
        import kvikio.defaults

        kvikio.defaults.set({"num_threads": THREADS})
    except Exception as exc:  # its libraries are missing in many ways
        print(f"kvikio is left out: {exc!r}")
        return found

    def with_kvikio(paths: list[Path]) -> list[Pair]:
        pairs, reading = [], []
        for path in paths:
            values, scale = _empty(shape), torch.empty((1, shape[1]), device="cuda")
            file = kvikio.CuFile(path, "r")
            reading.append((file, file.pread(values)))
            reading.append((file, file.pread(scale, file_offset=values.nbytes)))
            pairs.append((values, scale))
        for file, each in reading:
            each.get()
            file.close()
        return pairs

    return {**found, "kvikio": with_kvikio}


def peers_of_safetensors() -> dict[str, Peer]:
    """Return the ways that read `.safetensors`."""

    def load(paths: list[Path], backend: str) -> list[Pair]:
        return _pairs(paths, [load_file(path, "cuda", backend=backend) for path in paths])

    found: dict[str, Peer] = {
        "safetensors int8, mmap": lambda paths: load(paths, "mmap"),
        "safetensors int8, pread": lambda paths: load(paths, "pread"),
    }
    try:
        from fastsafetensors import fastsafe_open

        def fast(paths: list[Path]) -> list[Pair]:
            with fastsafe_open([str(path) for path in paths], device="cuda:0", nogds=True) as file:
                return _pairs(paths, [{key: file.get_tensor(key) for key in list(file.keys())}])

        found["fastsafetensors, nogds"] = fast
    except Exception as exc:
        print(f"fastsafetensors is left out: {exc!r}")
    try:
        from instanttensor import BackendPolicy, safe_open

        def instant(paths: list[Path]) -> list[Pair]:
            names = [str(path) for path in paths]
            with safe_open(names, "pt", "cuda:0", backend=BackendPolicy.BUFFERED) as file:
                return _pairs(paths, [dict(file.tensors())])

        found["InstantTensor, buffered"] = instant
    except Exception as exc:
        print(f"InstantTensor is left out: {exc!r}")
    return found


class ThreadsThatRead:
    """Threads that pread chunks of files into page-locked memory, while earlier ones cross."""

    def __init__(self, shape: tuple[int, int]) -> None:
        """Take page-locked memory for one video."""
        self._shape = shape
        self._size = -(-shape[0] * shape[1] // CHUNKS)
        self._pinned = torch.empty((CHUNKS, self._size), dtype=torch.uint8, pin_memory=True)
        self._memory = [memoryview(chunk.numpy()) for chunk in self._pinned]
        self._passed = [torch.cuda.Event() for _ in range(CHUNKS)]
        self._pool = ThreadPoolExecutor(THREADS)

    def __call__(self, paths: list[Path]) -> list[Pair]:
        """Return values and scale of each file."""
        pairs, work = [], []
        for path in paths:
            fd, values = os.open(path, os.O_RDONLY), _empty(self._shape)
            parts = values.view(-1).view(torch.uint8).split(self._size)
            work += [(fd, number * self._size, part) for number, part in enumerate(parts)]
            scale = np.frombuffer(os.pread(fd, 4 * self._shape[1], values.nbytes), np.float32)
            pairs.append((values, torch.tensor(scale).view(1, -1).cuda()))
        reading: deque[tuple[object, int, torch.Tensor]] = deque()
        for number in range(len(work) + CHUNKS):
            if number >= CHUNKS:
                read, slot, part = reading.popleft()
                read.result()
                part.copy_(self._pinned[slot, : len(part)], non_blocking=True)
                self._passed[slot].record()
            if number < len(work):
                fd, at, part = work[number]
                slot = number % CHUNKS
                read = self._pool.submit(self._read, fd, at, slot, len(part))
                reading.append((read, slot, part))
        torch.cuda.current_stream().synchronize()
        for fd in {fd for fd, _, _ in work}:
            os.close(fd)
        return pairs

    def _read(self, fd: int, at: int, slot: int, size: int) -> None:
        self._passed[slot].synchronize()
        if os.preadv(fd, [self._memory[slot][:size]], at) != size:
            raise OSError(f"{size} bytes at {at} were not read at once")


class _WholeRead:
    """A file read into page-locked memory, and copied."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape
        size = shape[0] * shape[1] + 4 * shape[1]
        self._pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def __call__(self, paths: list[Path]) -> list[Pair]:
        pairs = []
        for path in paths:
            with open(path, "rb", buffering=0) as file:
                file.readinto(memoryview(self._pinned.numpy()))
            pairs.append(_split(self._pinned.to("cuda", non_blocking=True), self._shape))
            torch.cuda.current_stream().synchronize()
        return pairs


def _mapped(path: Path, shape: tuple[int, int]) -> Pair:
    return _split(torch.from_numpy(np.memmap(path, np.uint8, mode="c")).to("cuda"), shape)


def _split(both: torch.Tensor, shape: tuple[int, int]) -> Pair:
    size = shape[0] * shape[1]
    values, scale = both[:size].view(torch.int8), both[size:].view(torch.float32)
    return values.view(shape), scale.view(1, -1)


def _empty(shape: tuple[int, int]) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.int8, device="cuda")


def _pairs(paths: list[Path], loaded: list[dict[str, torch.Tensor]]) -> list[Pair]:
    tensors = {key: tensor for each in loaded for key, tensor in each.items()}
    return [(tensors[f"{path.stem}.values"], tensors[f"{path.stem}.scale"]) for path in paths]
