"""Small specs, features and stores to test with; numpy alone, no video, no weights."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featstore.encoders.toy import ToyEncoder
from featstore.geometry import RowLayout
from featstore.records.header import Header, SourceFingerprint
from featstore.records.quantization import measure_error, quantize
from featstore.records.record import pack_record
from featstore.records.storage import Storage
from featstore.sampling import Sampling
from featstore.spec import FeatureSpec
from featstore.store.writer import FeatureWriter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

REPOSITORY = Path(__file__).resolve().parents[2]
DIM = 8
TOKENS_PER_FRAME = 4
ROOM_BEFORE_PAYLOAD = 64 << 10
INT8 = Storage()


def toy_spec(nframe: int = 4) -> FeatureSpec:
    """The feature set of `ToyEncoder`: 4 tokens of 8 dims a frame."""
    encoder = ToyEncoder()
    return FeatureSpec(encoder.identity, Sampling(nframe), "decord", encoder.preprocessing)


def toy_features(seed: int, frames: int = 4) -> NDArray[np.float32]:
    """Draw features (frames * 4, 8) whose channels differ in size, as CLIP's do."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.normal(size=DIM))
    return (rng.normal(size=(frames * TOKENS_PER_FRAME, DIM)) * sizes).astype(np.float32)


def toy_header(
    spec: FeatureSpec,
    dataset: str,
    video_id: str,
    x: NDArray[Any],
    storage: Storage = INT8,
) -> Header:
    """The header of `x` (rows, 8)."""
    frames = len(x) // TOKENS_PER_FRAME
    stored, scales = quantize(x, storage)
    return Header(
        video_id=video_id,
        video_path=f"/videos/{video_id}.mp4",
        dataset=dataset,
        spec=spec.digest,
        nframe=spec.sampling.nframe,
        frame_indices=struct.pack(f"<{frames}I", *range(frames)),
        total_frames=frames,
        fps=25.0,
        decoder="pyav",
        doubt="",
        shape=(len(x), DIM),
        layout=spec.encoder.geometry.layout(frames),
        dtype=spec.encoder.dtype,
        storage=storage,
        source=SourceFingerprint(1_000, 1_700_000_000_000_000_000, "0" * 32),
        error=measure_error(x, stored, scales, storage.values),
        created=1_700_000_000.0,
    )


def pack_video(
    spec: FeatureSpec,
    dataset: str,
    video_id: str,
    x: NDArray[np.float32],
    /,
    storage: Storage = INT8,
    **header: Any,
) -> tuple[Header, memoryview]:
    """Pack `x` as the writer process does: quantized into a buffer with room before the payload.

    header: fields that shall be other than `toy_header` has them.
    """
    stored, scales = quantize(x, storage)
    row = {**vars(toy_header(spec, dataset, video_id, x, storage)), **header}
    room = ROOM_BEFORE_PAYLOAD + sum(scale.nbytes for scale in scales) + 4 * len(x)
    buffer = memoryview(bytearray(room) + stored.tobytes())
    joined = b"".join(scale.tobytes() for scale in scales)
    return pack_record(Header(**row), joined, buffer, slice(room, len(buffer)))


def put_video(
    writer: FeatureWriter,
    spec: FeatureSpec,
    video_id: str,
    x: NDArray[np.float32],
    /,
    storage: Storage = INT8,
    **header: Any,
) -> None:
    """Put `x` into a set that was added; see `pack_video`."""
    writer.put(*pack_video(spec, writer.dataset, video_id, x, storage, **header))


# Header fields with values that no record of `toy_spec()` has, and that agree with each other.
MISFITS: dict[str, dict[str, Any]] = {
    "nframe": {"nframe": 8},
    "dtype": {"dtype": "fp16"},
    "tokens_per_unit": {
        "frame_indices": bytes(8),
        "layout": RowLayout(units=2, tokens_per_unit=8),
    },
    "width": {"shape": (16, 4)},
    "planes": {"layout": RowLayout(units=4, tokens_per_unit=4, planes=2, grid=(4, 2, 2))},
    "stride": {"layout": RowLayout(units=2, tokens_per_unit=8, frames_per_unit=2, stride=2)},
}


def misfit_record(spec: FeatureSpec, dataset: str, video_id: str, misfit: str) -> memoryview:
    """A record that says it is of `spec` and cannot be: whole, checksums and all."""
    header = toy_header(spec, dataset, video_id, toy_features(1))
    header = Header(**{**vars(header), **MISFITS[misfit]})
    scales = np.ones(header.scale_bytes // 4, "<f4").tobytes()
    buffer = memoryview(bytearray(ROOM_BEFORE_PAYLOAD + header.raw_bytes))
    return pack_record(header, scales, buffer, slice(ROOM_BEFORE_PAYLOAD, len(buffer)))[1]


def store_videos(
    cache_dir: str | os.PathLike[str],
    dataset: str,
    videos: Mapping[str, NDArray[np.float32]],
    *,
    spec: FeatureSpec | None = None,
    storage: Storage | None = None,
) -> FeatureSpec:
    """Store features by video id, one commit a video, and return their spec."""
    spec = spec or toy_spec()
    with FeatureWriter(cache_dir, dataset, min_free=0) as writer:
        row = writer.add_set(spec, storage, origin="toy")
        for video_id, x in videos.items():
            put_video(writer, spec, video_id, x, row.storage)
            writer.commit()
    return spec


def expected(x: NDArray[np.float32], storage: Storage = INT8) -> NDArray[Any]:
    """What a store gives back for `x`: its stored values."""
    return quantize(x, storage)[0]


def run_python(
    program: str, *arguments: object, timeout: float = 60, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh interpreter that sees featstore and these helpers."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *map(str, arguments)],
        env=python_env() | env,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def oldest_kernels() -> dict[str, str]:
    """What makes numpy and OpenBLAS compute as on the oldest processor they know: each kernel rounds in its own way."""
    newer = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    return {"OPENBLAS_CORETYPE": "Prescott", "NPY_DISABLE_CPU_FEATURES": " ".join(newer)}


def start_python(program: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start a program in a fresh interpreter; talk to it over stdin and stdout. options: of Popen."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program, *map(str, arguments)],
        env=python_env(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def python_env(*first: Path) -> dict[str, str]:
    """This environment, where an interpreter sees `first`, featstore, these helpers and what this one was told to."""
    path = [
        *first,
        REPOSITORY,
        REPOSITORY / "tests" / "support",
        REPOSITORY / "tools",
        os.environ.get("PYTHONPATH", ""),
    ]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, filter(None, path))),
        "PYTHONFAULTHANDLER": "1",
    }


def children_of(pid: int, module: str) -> list[int]:
    """The processes that `featstore.system.processes` started for `pid` to run `module`."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if module.encode() in words and str(pid).encode() in words:
            found.append(int(entry.name))
    return found
