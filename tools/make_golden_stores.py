"""Make the small stores in tests/golden/stores, which every later release must read.

A release whose format is another makes a new folder, named by its format, and leaves the old ones as they are.
They come out the same on any machine: nothing in them is a sum, a sine or a power that a BLAS or a processor rounds
in its own way.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import click
import numpy as np

from featstore.encoders.toy import ToyEncoder
from featstore.fields import to_plain
from featstore.geometry import Geometry
from featstore.preprocessing import ExactResize, PixelBudget, Preprocessing
from featstore.records.header import Header, SourceFingerprint
from featstore.records.quantization import QuantError, quantize
from featstore.records.record import FORMAT, pack_record
from featstore.records.storage import Storage
from featstore.sampling import Sampling
from featstore.spec import EncoderIdentity, FeatureSpec
from featstore.store.manifest import STORE_FORMAT
from featstore.store.reader import FeatureStore
from featstore.store.rows import Failure
from featstore.store.writer import FeatureWriter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featstore.store.dataset import Dataset

DATASET = "golden"
TIME = 1_700_000_000.0
DIM, NFRAME = 8, 4
ROOM = 64 << 10
# Stands in for a measured one, whose sums are taken in the order of the local BLAS.
ERROR = QuantError(cosine=0.75, relative_l2=0.5, max_abs=0.25, token_p99=0.125, token_max=0.5)
GRID = Geometry(tokens_per_unit=4, hidden_dim=DIM, grid=(2, 2))
# Of each set: its storage and geometry; the first is the default one.
STORES: dict[str, list[tuple[Storage, Geometry]]] = {
    "int8_channel_token": [(Storage("int8", "channel_token"), GRID)],
    "int8_channel": [(Storage("int8", "channel"), GRID)],
    "int8_token_lz4": [(Storage("int8", "token", "lz4"), GRID)],
    "int8_tensor_zstd": [(Storage("int8", "tensor", "zstd"), GRID)],
    "bf16": [(Storage("bf16"), GRID)],
    "fp16_planes": [(Storage("fp16", codec="planes"), GRID)],
    "fp32_zstd": [(Storage("fp32", codec="zstd"), GRID)],
    "two_sets": [(Storage("int8", "tensor"), GRID), (Storage("fp32", codec="lz4"), GRID)],
    "geometries": [
        (Storage("fp16"), Geometry(tokens_per_unit=4, hidden_dim=DIM, extra_rows=1)),
        (Storage("fp16"), Geometry(8, DIM, frames_per_unit=2, stride=2, by_video=True)),
        (Storage("fp16"), Geometry(3, DIM, frames_per_unit=3, stride=1)),
        (Storage("fp16"), Geometry(2, DIM // 2, planes=2, grid=(1, 2))),
        (Storage("fp16"), Geometry(tokens_per_unit=1, hidden_dim=DIM)),
    ],
}
VIDEOS = {"water": 4, "a/b c": 3, "übung \udcff": 4}  # frames; an id is text or a file name's bytes
# Of the sets of one store, one after the other.
PREPROCESSINGS: list[Preprocessing] = [
    ToyEncoder().preprocessing,
    PixelBudget(multiple=14, min_pixels=196, max_pixels=784),
    ExactResize(height=28, width=56),
]


@click.command()
@click.argument("out_dir", type=click.Path(file_okay=False, path_type=Path))
def main(out_dir: Path) -> None:
    """Write the stores of this release's format into a folder of OUT_DIR, and print their paths."""
    for path in make_golden_stores(out_dir / f"store{STORE_FORMAT}_record{FORMAT}"):
        click.echo(path)


def make_golden_stores(folder: Path) -> list[Path]:
    """Write each store's data.mdb, and expected.json with what a reader finds in it, and return their folders."""
    made = []
    for name, sets in STORES.items():
        place = folder / name
        place.mkdir(parents=True)
        with tempfile.TemporaryDirectory() as draft, mock.patch("time.time", return_value=TIME):
            _fill(Path(draft), sets)
            found = describe(FeatureStore(draft)[DATASET])
            shutil.copyfile(Path(draft) / DATASET / "data.mdb", place / "data.mdb")
        text = json.dumps(found, indent=1, ensure_ascii=True)
        (place / "expected.json").write_text(text + "\n", encoding="ascii")
        made.append(place)
    return made


def describe(dataset: Dataset) -> dict[str, Any]:
    """Return all that a dataset says, payloads and scales as sha256 of their bytes."""
    sets = list(dataset.sets.values())
    return {
        "default": dataset.feature_set.spec.digest,
        "sets": [
            {**to_plain(row), "digest": there.feature_set.spec.digest, **vars(there.counts)}
            for there in sets
            for row in [there.feature_set]
        ],
        "videos": sorted(
            (_describe_video(there, video) for there in sets for video in there),
            key=lambda row: (row["header"]["spec"], row["header"]["video_id"]),
        ),
        "failures": sorted(
            [row.video_id, row.video_path, row.spec, row.reason, row.created]
            for there in sets
            for row in there.failures()
        ),
    }


def _describe_video(dataset: Dataset, video: str) -> dict[str, Any]:
    features = dataset[video]
    return {
        "header": to_plain(features.header) | {"frame_indices": features.header.frames},
        "dtype": str(features.dtype),
        "data": _sha256(features.data),
        "scales": [_sha256(scale) for scale in features.scales],
    }


def _sha256(values: NDArray[Any]) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()


def _fill(cache: Path, sets: list[tuple[Storage, Geometry]]) -> None:
    with FeatureWriter(cache, DATASET, min_free=0) as writer:
        for at, (storage, geometry) in enumerate(sets):
            encoder = EncoderIdentity(
                "toy", "0123456789abcdef" * 4, "fp32", geometry, {"layer": -2, "select": "patch"}
            )
            spec = FeatureSpec(encoder, Sampling(NFRAME), "decord", PREPROCESSINGS[at % 3])
            with mock.patch("time.time", return_value=TIME + at):
                writer.add_set(
                    spec, storage, origin="toy", names={"vision_tower": "toy/é"}, max_error=0.5
                )
            for number, (video, frames) in enumerate(VIDEOS.items()):
                writer.put(*_pack(spec, video, number, frames, storage))
            failure = Failure("broken", "/videos/broken.mp4", spec.digest, "no frames", TIME)
            writer.fail(failure)
            writer.commit()


def _pack(
    spec: FeatureSpec, video: str, number: int, frames: int, storage: Storage
) -> tuple[Header, memoryview]:
    grid = (2, 1 + number) if spec.encoder.geometry.by_video else None
    layout = spec.encoder.geometry.layout(frames, grid)
    x = _features(number, layout.rows)
    stored, scales = quantize(x, storage)
    header = Header(
        video_id=video,
        video_path=f"/videos/{video}.mp4",
        dataset=DATASET,
        spec=spec.digest,
        nframe=NFRAME,
        frame_indices=struct.pack(f"<{frames}I", *range(frames)),
        total_frames=frames,
        fps=25.0,
        decoder="pyav",
        doubt="" if number else "a frame could not be sought",
        shape=(layout.rows, DIM),
        layout=layout,
        dtype=spec.encoder.dtype,
        storage=storage,
        source=SourceFingerprint(1_000, int(TIME) * 10**9, "0" * 32),
        error=replace(ERROR, max_abs=float(number)),
        created=TIME,
    )
    buffer = memoryview(bytearray(ROOM) + stored.tobytes())
    joined = b"".join(scale.tobytes() for scale in scales)
    return pack_record(header, joined, buffer, slice(ROOM, len(buffer)))


def _features(number: int, rows: int) -> NDArray[np.float32]:
    """Return (rows, 8) float32 that are whole numbers over 1024: whole ones are computed alike everywhere.

    Every third row is the same, so that codecs find something.
    """
    values = np.arange(1, rows * DIM + 1).reshape(-1, DIM) % (3 * DIM)
    scattered = values * 7919 * (number + 1) % 2039 - 1019
    channels = scattered << np.arange(DIM)  # sizes differ, as CLIP's channels do
    features: NDArray[np.float32] = channels.astype(np.float32) / np.float32(1024)
    return features


if __name__ == "__main__":
    main()
