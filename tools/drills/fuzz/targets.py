"""What reads bytes that somebody else may have written: one function a parser, and bytes to begin from.

A target gets past checksums and lengths by making them right, so that a fuzzer reaches what lies behind. It raises
nothing but what is a bug: each error that the parser promises is caught.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack
import numpy as np
import xxhash
from drills.damage.stores import DATASET, STORAGES, Journal, make_storages, make_tree, toy_spec
from safetensors.numpy import save

from featstore.checkpoints.files import LocalFiles
from featstore.checkpoints.tensors import INDEX, list_tensors, open_tensors
from featstore.encoders.longva.checkpoint import read_checkpoint
from featstore.errors import FeatstoreError, StoreDamaged
from featstore.geometry import Geometry
from featstore.pipeline.listing import read_listing
from featstore.pipeline.make_record import pack_scales, record_room
from featstore.preprocessing import ExactResize, PixelBudget, ShortestEdgeCrop, frame_bytes
from featstore.records.codecs import CODECS, compress
from featstore.records.features import Features
from featstore.records.header import from_map, to_map
from featstore.records.record import pack_prefix, parse
from featstore.records.storage import STORED_DTYPES, Storage
from featstore.spec import FeatureSpec
from featstore.store.catalog import read_entries, read_failures, read_manifest
from featstore.store.engine.pages import parse_meta
from featstore.store.engine.tree import Tree
from featstore.store.manifest import Counts, Manifest
from featstore.store.rows import (
    Failure,
    FeatureSet,
    build_row,
    pack_row,
    set_key,
    unpack_row,
    unpack_set,
    video_key,
)

if TYPE_CHECKING:
    from collections.abc import Callable

CHECKSUM_AT, FIELDS_AT = 44, 52  # in a record
ROW_AT = 11  # a row's map, behind its checksum
MAX_RAW_BYTES = 4 << 20


class Target(NamedTuple):
    """A parser to fuzz. share: of all executions, in hundredths."""

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    share: int


def record(data: bytes) -> None:
    """Parse a record: 3 bytes of map header, 2 that say how long the payload is, then all behind the checksum."""
    if len(data) < 5:
        return
    head = bytearray(b"\x93" + data[:3] + b"\xa6format\x02\xacprefix_bytes\xce")
    (payload_bytes,) = struct.unpack("<H", data[3:5])
    head += struct.pack(">I", max(0, FIELDS_AT + len(data) - 5 - payload_bytes))
    head += b"\xabprefix_xxh3\xc4\x08" + bytes(8) + data[5:]
    end = max(FIELDS_AT, len(head) - payload_bytes)
    head[CHECKSUM_AT:FIELDS_AT] = xxhash.xxh3_64_digest(head[:end])
    with contextlib.suppress(FeatstoreError):
        found = parse(memoryview(bytes(head)))
        features = Features(found.header, found)
        if found.header.raw_bytes <= MAX_RAW_BYTES:
            with np.errstate(all="ignore"):
                features.dequantize()
        _ = features.header.frames, features.scales, repr(features)
        found.verify()


def header(data: bytes) -> None:
    """Read a header's map, and use what it says of layout and storage."""
    try:
        fields = msgpack.unpackb(data, unicode_errors="surrogatepass", strict_map_key=True)
    except Exception:
        return
    with contextlib.suppress(FeatstoreError):
        found = from_map(fields)
        rows, width = found.shape
        shapes = found.storage.scale_shapes(rows, width)
        assert found.layout.rows == rows
        assert width % found.layout.planes == 0
        assert all(long in (1, rows) and wide in (1, width) for long, wide in shapes)
        assert 0 < found.raw_bytes == rows * width * found.storage.itemsize
        assert from_map(to_map(found)) == found
        for known in _SPECS:
            assert isinstance(found.misfit(known, DATASET), str)


def codec(data: bytes) -> None:
    """Decompress a payload: 1 byte picks the codec, 3 say how long it shall become."""
    if len(data) < 4:
        return
    name = sorted(CODECS)[data[0] % len(CODECS)]
    raw_bytes = int.from_bytes(data[1:4], "little") % MAX_RAW_BYTES
    with contextlib.suppress(FeatstoreError):
        assert len(CODECS[name].decompress(memoryview(data)[4:], raw_bytes)) == raw_bytes


def row(data: bytes) -> None:
    """Read a row: 1 byte picks the table, then all behind the checksum."""
    packed = b"\x92\xc4\x08" + xxhash.xxh3_64_digest(data[1:]) + data[1:]
    snapshot: Any = SimpleNamespace(
        path=Path("cache/store"),
        cache=SimpleNamespace(sets=(-1, {}), manifest=(-1, None)),
        txn_id=0,
        read=lambda table, key: packed,
        values=lambda table, prefix=b"": [packed],
    )
    with contextlib.suppress(FeatstoreError):
        kind = data[0] % 4 if data else 0
        if kind == 0:
            for entry in read_entries(snapshot, ""):
                _ = entry.source, entry.error, entry.storage
                assert pack_row(entry)[ROW_AT:]
        elif kind == 1:
            found = read_manifest(snapshot, DATASET)
            assert all(type(counts) is Counts for counts in found.sets.values())
        elif kind == 2:
            list(read_failures(snapshot, ""))
        else:
            _read_set(packed)


def _read_set(packed: bytes) -> None:
    row = build_row(FeatureSet, unpack_row(packed))
    assert repr(unpack_set(set_key(row.spec.digest), packed)) == repr(row)  # nan is no nan
    assert row.describe().isprintable()
    with contextlib.suppress(StoreDamaged):
        unpack_set(b"0" * 32, packed)
        raise AssertionError("a row under the key of another set")


class Memory:
    """A file in memory, which the walk of its pages takes for a map; to read beyond its end is a bug."""

    address = 0

    def __init__(self, data: bytes) -> None:
        """Take the file's bytes."""
        self._data = data

    def file_bytes(self) -> int:
        """Return how many there are."""
        return len(self._data)

    def read(self, offset: int, length: int) -> bytes:
        """Return a copy of some of them."""
        assert 0 <= offset <= offset + length <= len(self._data)
        return self._data[offset : offset + length]


def pages(data: bytes) -> None:
    """Walk the pages of a small store with patches: each is 3 bytes that say where, and 4 to put there."""
    image = bytearray(_tree())
    for at in range(0, len(data) - 6, 7):
        place = int.from_bytes(data[at : at + 3], "little") % (len(image) - 3)
        image[place : place + 4] = data[at + 3 : at + 7]
    with contextlib.suppress(FeatstoreError):
        metas = [parse_meta(bytes(image[at : at + 4096]), at >> 12, Path()) for at in (0, 4096)]
        mapping: Any = Memory(bytes(image))
        tree = Tree(mapping, max(metas, key=lambda meta: meta.txn_id), Path())
        for key in _tree_keys():
            place = tree.find(key)
            assert place is None or place.offset + place.length <= len(image)
        keys = []
        for found, values in tree.rows(b"", lambda place: mapping.read(*place)):
            assert len(found) == len(values)
            keys += found
        assert keys == sorted(set(keys))


def spec(data: bytes) -> None:
    """Rebuild a spec from JSON, say all that is said of specs, and size what its frames and records take."""
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError):
        return
    with contextlib.suppress(FeatstoreError):
        found = FeatureSpec.from_dict(plain)
        assert video_key(found.digest, "video").startswith(set_key(found.digest))
        _ = found.describe(), found.ingest_options(), found.diff(_SPECS[0])
        assert FeatureSpec.from_dict(found.to_dict()) == found
        assert found.max_rows > 0 < frame_bytes(found.preprocessing)
        for height, width in ((1, 1), (720, 1280), (3, 601)):
            with contextlib.suppress(ValueError):
                assert min(found.preprocessing.size_of(height, width)) > 0
        for values in STORED_DTYPES:
            with contextlib.suppress(FeatstoreError):
                assert min(record_room(found, Storage(values))) > 0


def manifest(data: bytes) -> None:
    """Read a manifest of videos: 1 byte picks its kind."""
    suffix = (".jsonl", ".csv", ".tsv")[data[0] % 3] if data else ".csv"
    with contextlib.suppress(FeatstoreError):
        videos = read_listing(_write(f"listing{suffix}", data[1:]))
        assert all(os.path.isabs(video.path) and "\0" not in video.path for video in videos)


def config(data: bytes) -> None:
    """Read a checkpoint's config.json, or that of its vision tower, or its image processor's: 1 byte picks."""
    kind = data[0] % 3 if data else 0
    files = {"config.json": _CONFIG, "clip/config.json": _CLIP}
    files["clip/preprocessor_config.json"] = _PREPROCESSOR
    files[list(files)[kind]] = data[1:]
    for name, content in files.items():
        _write(f"checkpoint/{name}", content)
    with contextlib.suppress(FeatstoreError):
        found = read_checkpoint(_folder() / "checkpoint")
        _ = found.vision.tokens_per_frame, found.vision.layers, found.clip.preprocessing()


def index(data: bytes) -> None:
    """Read the index of a sharded checkpoint."""
    folder = _write(f"sharded/{INDEX}", data).parent
    with contextlib.suppress(FeatstoreError):
        for shard in list_tensors(LocalFiles(folder)).values():
            assert os.path.dirname(os.path.normpath(folder / shard)) == str(folder)


def tensors(data: bytes) -> None:
    """Open a safetensors file and read each of its tensors' names, kinds and shapes."""
    path = _write("model.safetensors", data)
    with contextlib.suppress(FeatstoreError), open_tensors(path, framework="np") as opened:
        for name in opened.keys():  # noqa: SIM118, an open safetensors file is no mapping
            found = opened.get_slice(name)
            _ = found.get_shape(), found.get_dtype()


_CONFIG = json.dumps(
    {
        "model_type": "llava_qwen",
        "mm_vision_tower": "clip",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_spatial_pool_mode": "average",
        "mm_spatial_pool_stride": 2,
        "hidden_size": 128,
    }
).encode()
_CLIP = json.dumps(
    {
        "model_type": "clip",
        "vision_config": {
            "hidden_size": 64,
            "image_size": 336,
            "patch_size": 14,
            "hidden_act": "gelu",
        },
    }
).encode()
_PREPROCESSOR = json.dumps(
    {"size": {"shortest_edge": 336}, "crop_size": 336, "image_mean": [0.5, 0.5, 0.5], "resample": 3}
).encode()


_ROWS = (
    Geometry(4, 8),
    Geometry(4, 8, grid=(2, 2), extra_rows=1),
    Geometry(6, 8, frames_per_unit=2, stride=2, by_video=True),
    Geometry(3, 8, frames_per_unit=4, stride=1),
    Geometry(4, 8, planes=3),
    Geometry(1, 8),
)
_FRAMES = (
    ShortestEdgeCrop(shortest_edge=28, crop_height=28, crop_width=28),
    ExactResize(height=28, width=20),
    PixelBudget(multiple=28, min_pixels=28 * 28, max_pixels=28 * 28 * 16),
)
_SPECS = [
    replace(toy_spec(), encoder=replace(toy_spec().encoder, geometry=rows), preprocessing=frames)
    for rows in _ROWS
    for frames in _FRAMES
]


@cache
def _tree() -> bytes:
    return make_tree(0).data


@cache
def _tree_keys() -> list[bytes]:
    mapping: Any = Memory(_tree())
    metas = [parse_meta(mapping.read(at, 4096), at >> 12, Path()) for at in (0, 4096)]
    tree = Tree(mapping, max(metas, key=lambda meta: meta.txn_id), Path())
    return list(tree.keys(b""))[::3]


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


def _write(name: str, data: bytes) -> Path:
    path = _folder() / name
    try:
        path.write_bytes(data)
    except FileNotFoundError:
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
    return path


def _journal() -> Journal:
    return make_storages(0).journal


def _record_seeds() -> list[bytes]:
    seeds = []
    for put in _journal().puts.values():
        stored = memoryview(put.stored.tobytes())
        _, kept = compress(stored, put.header.storage)
        whole = pack_prefix(put.header, pack_scales(put.scales), len(kept)) + bytes(kept)
        head, _, tail = whole.partition(b"\xa3pad\xc5")
        (pad,) = struct.unpack_from(">H", tail)
        rest = head[FIELDS_AT:] + b"\xa3pad\xc4\x00" + tail[2 + pad :]
        seeds.append(whole[1:4] + struct.pack("<H", len(kept)) + rest)
    return seeds


def _header_seeds() -> list[bytes]:
    seeds = []
    first, *_ = (put.header for put in _journal().puts.values())
    for spec in _SPECS[:: len(_FRAMES)]:
        geometry = spec.encoder.geometry
        layout = geometry.layout(len(first.frames), (2, 3) if geometry.by_video else None)
        for storage in STORAGES:
            found = replace(
                first,
                spec=spec.digest,
                layout=layout,
                shape=(layout.rows, geometry.row_width),
                storage=storage,
            )
            seeds.append(msgpack.packb(to_map(found)))
    return seeds


def _codec_seeds() -> list[bytes]:
    payload = memoryview(bytes(3000) + bytes(range(256)))
    length = len(payload).to_bytes(3, "little")
    return [
        bytes([number]) + length + bytes(CODECS[name].compress(payload))
        for number, name in enumerate(sorted(CODECS))
    ]


def _row_seeds() -> list[bytes]:
    sets = [
        FeatureSet(spec, storage, budget, "toy", {"vision_tower": "a/b"}, 0.0, 1.0)
        for spec in _SPECS
        for storage, budget in ((Storage(), None), (Storage("bf16", codec="zstd"), 0.01))
    ]
    entries = [put.entry for put in _journal().puts.values()]
    digests = [spec.digest for spec in _SPECS]
    manifests = [
        Manifest(DATASET, 0.0),
        Manifest(DATASET, 0.0, digests[0], {digest: Counts(1, 2, 3, 4) for digest in digests}),
    ]
    failures = [Failure("a", "/a.mp4", "0" * 32, "no frames", 0.0)]
    return [
        bytes([kind]) + pack_row(found)[ROW_AT:]
        for kind, rows in enumerate((entries, manifests, failures, sets))
        for found in rows
    ]


def _page_seeds() -> list[bytes]:
    # A patch at the head of each page and at each number in it, of the value that is there.
    image = _tree()
    places = [start + at for start in range(0, len(image), 4096) for at in range(0, 160, 4)]
    return [at.to_bytes(3, "little") + image[at : at + 4] for at in places]


def _spec_seeds() -> list[bytes]:
    return [json.dumps(spec.to_dict()).encode() for spec in _SPECS]


def _manifest_seeds() -> list[bytes]:
    return [
        b'\x00{"video_id": "x", "path": "v/x.mp4"}\n',
        b"\x01video_id,path\nx,v/x.mp4\n",
        b"\x02path\tvideo_id\n/v/x.mp4\tx\n",
    ]


def _config_seeds() -> list[bytes]:
    return [b"\x00" + _CONFIG, b"\x01" + _CLIP, b"\x02" + _PREPROCESSOR]


def _index_seeds() -> list[bytes]:
    shards = {"model.a": "model-00001-of-00002.safetensors", "model.b": "../b.safetensors"}
    return [json.dumps({"weight_map": shards}).encode()]


def _tensor_seeds() -> list[bytes]:
    return [save({"model.a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float16)})]


TARGETS = (
    Target("record", record, _record_seeds, 24),
    Target("header", header, _header_seeds, 10),
    Target("codec", codec, _codec_seeds, 20),
    Target("row", row, _row_seeds, 26),
    Target("pages", pages, _page_seeds, 3),
    Target("spec", spec, _spec_seeds, 9),
    Target("manifest", manifest, _manifest_seeds, 2),
    Target("config", config, _config_seeds, 2),
    Target("index", index, _index_seeds, 2),
    Target("tensors", tensors, _tensor_seeds, 2),
)
