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
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import click
import numpy as np

from featstore.encoders.toy import ToyEncoder
from featstore.records.header import Header, SourceFingerprint
from featstore.records.quantization import QuantError, quantize
from featstore.records.record import FORMAT
from featstore.sampling import Sampling
from featstore.spec import FeatureSpec
from featstore.store.catalog import STORE_FORMAT, Failure
from featstore.store.reader import FeatureStore
from featstore.store.writer import FeatureWriter

if TYPE_CHECKING:
    from featstore.store.dataset import Dataset

DATASET = "golden"
TIME = 1_700_000_000.0
TOKENS_PER_FRAME, DIM = 4, 8
ROOM = 64 << 10
# Stands in for a measured one, whose sums are taken in the order of the local BLAS.
ERROR = QuantError(cosine=0.75, relative_l2=0.5, max_abs=0.25)
# Of each: quantization, scale, codec.
STORES = {
    "int8_raw": [("int8", "channel", "raw")],
    "int8_token_lz4": [("int8", "token", "lz4")],
    "bf16": [("bf16", "none", "raw")],
    "two_sets": [("int8", "tensor", "raw"), ("fp32", "none", "lz4")],
}
VIDEOS = {"water": 4, "a/b c": 3, "übung \udcff": 4}  # frames; an id is text or a file name's bytes


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
    return {
        "sets": [
            {"spec": found.spec.to_dict(), "digest": found.spec.digest, "origin": found.origin}
            for found in dataset.sets()
        ],
        "videos": sorted(
            (
                _describe_video(dataset, entry.video_id, found.spec)
                for found in dataset.sets()
                for entry in dataset.entries(found.spec)
            ),
            key=lambda row: (row["header"]["spec"], row["header"]["video_id"]),
        ),
        "failures": sorted(
            [row.video_id, row.video_path, row.spec, row.reason, row.created]
            for row in dataset.failures()
        ),
    }


def _describe_video(dataset: Dataset, video: str, spec: FeatureSpec) -> dict[str, Any]:
    features = dataset.lookup(video, spec=spec)
    header = dict(vars(features.header))
    header |= {
        "frame_indices": features.header.frames,
        "shape": list(features.header.shape),
        "source": list(vars(features.header.source).values()),
        "error": vars(features.header.error),
    }
    return {
        "header": header,
        "dtype": str(features.data.dtype),
        "data": hashlib.sha256(features.data.tobytes()).hexdigest(),
        "scale": hashlib.sha256(features.scale.tobytes()).hexdigest(),
    }


def _fill(cache: Path, sets: list[tuple[str, str, str]]) -> None:
    with FeatureWriter(cache, DATASET, min_free=0) as writer:
        for quantization, scale, codec in sets:
            spec = FeatureSpec(ToyEncoder().identity, Sampling(4), "decord", quantization, scale)
            writer.add_set(spec, "toy")
            for number, (video, frames) in enumerate(VIDEOS.items()):
                _put(writer, spec, video, _features(number, frames), codec)
            failure = Failure("broken", "/videos/broken.mp4", spec.digest, "no frames", TIME)
            writer.fail(spec, failure)
            writer.commit()


def _features(number: int, frames: int) -> np.ndarray:
    """Return (frames * 4, 8) float32 that are whole numbers over 1024: whole ones are computed alike everywhere."""
    values = np.arange(1, frames * TOKENS_PER_FRAME * DIM + 1).reshape(-1, DIM)
    scattered = values * 7919 * (number + 1) % 2039 - 1019
    channels = scattered << np.arange(DIM)  # sizes differ, as CLIP's channels do
    return channels.astype(np.float32) / np.float32(1024)


def _put(writer: FeatureWriter, spec: FeatureSpec, video: str, x: np.ndarray, codec: str) -> None:
    stored, scale = quantize(x, spec.quantization, spec.scale)
    frames = len(x) // TOKENS_PER_FRAME
    header = Header(
        video_id=video,
        video_path=f"/videos/{video}.mp4",
        dataset=DATASET,
        nframe=spec.sampling.nframe,
        frame_indices=struct.pack(f"<{frames}I", *range(frames)),
        total_frames=frames,
        fps=25.0,
        shape=(len(x), DIM),
        tokens_per_frame=TOKENS_PER_FRAME,
        quantization=spec.quantization,
        scale=spec.scale,
        dtype=spec.encoder.dtype,
        model_signature=spec.encoder.model_signature,
        spec=spec.digest,
        source=SourceFingerprint(1_000, int(TIME) * 10**9, "0" * 32),
        error=ERROR,
        created=TIME,
    )
    buffer = memoryview(bytearray(ROOM) + stored.tobytes())
    writer.put(spec, header, scale.tobytes(), buffer, slice(ROOM, len(buffer)), codec=codec)


if __name__ == "__main__":
    main()
