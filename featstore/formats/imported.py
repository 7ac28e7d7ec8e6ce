"""What a file of features becomes: a record of the set that it was exported from, or of one that is marked as imported.

A folder that featstore exported says in `index.jsonl` and `feature_set.json` what its files are: those become what they
were, bit for bit, if their values have the checksum that the index says. Of all other files, what computed the features
and of which frames is not known, and their feature set says so (FeatureSpec.of_imported).
"""

from __future__ import annotations

import json
import os
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from featstore.errors import ListingError, StoreError
from featstore.fields import build, to_plain
from featstore.formats.export_index import plain_header
from featstore.formats.facts import IMPORTED
from featstore.formats.feature_files import read_features
from featstore.formats.file_content import check_finite
from featstore.formats.names import INDEX, SET_FILE
from featstore.geometry import Geometry
from featstore.records.header import Header, SourceFingerprint, from_map
from featstore.records.quantization import QuantError
from featstore.records.record import pack_record
from featstore.records.storage import Storage
from featstore.spec import FeatureSpec
from featstore.store.rows import FeatureSet

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featstore.formats.file_content import FileContent
    from featstore.geometry import RowLayout
    from featstore.records.quantization import Scales

_MAX_SET_BYTES = 1 << 20
_MOST_TOKENS = 1 << 24
_NO_FILE = SourceFingerprint(0, 0, "0" * 32)
_AS_IMPORTED = QuantError(1.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class ImportedFolder:
    """A folder of files, and what is said about all of them.

    Args:
        path: the folder.
        dataset: the dataset that its files go to.
        nframe: number of frames of each video, if it was stated.
        root: folder to which the ids of `.pt` files are relative, if it was stated.
        facts: what the index says of each file, by name; empty if there is none.
        feature_set: what the files were exported from, None if that is unknown.
    """

    path: Path
    dataset: str
    nframe: int | None = None
    root: str | None = None
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    feature_set: FeatureSet | None = None

    @classmethod
    def open(
        cls, path: Path, dataset: str, *, nframe: int | None, root: str | None
    ) -> ImportedFolder:
        """Return a folder with its index, if it has one; raise ListingError if that cannot be read."""
        try:
            facts = _read_index(path / INDEX)
            described = _read_set(path / SET_FILE)
        except (OSError, ValueError) as exc:
            raise ListingError(
                f"what {path} says of its files cannot be read: {exc}; take {INDEX} and {SET_FILE} away to import them "
                "as files of other programs"
            ) from exc
        return cls(path, dataset, nframe, root, facts, described)


@dataclass(frozen=True)
class ImportedVideo:
    """A file's features, ready to be stored.

    Args:
        feature_set: the set they go to.
        header: of their record.
        data: the values, (rows, width).
        scales: float32, as the storage has them.
    """

    feature_set: FeatureSet
    header: Header
    data: NDArray[Any]
    scales: Scales

    def pack(self) -> tuple[Header, memoryview]:
        """Return header and record; raise QuantizeError or RecordError if the values or scales cannot be stored."""
        header = self.header
        check_finite(self.data, header.storage.values)
        room = header.storage.record_room(header.shape, header.nframe)[0]
        buffer = memoryview(bytearray(room + header.raw_bytes))
        np.frombuffer(buffer[room:], self.data.dtype).reshape(header.shape)[:] = self.data
        scales = b"".join(scale.tobytes() for scale in self.scales)
        return pack_record(header, scales, buffer, slice(room, len(buffer)))


def read_video(folder: ImportedFolder, path: Path) -> ImportedVideo:
    """Return the features of a file, whose values are not read yet.

    Args:
        folder: the folder that it is in.
        path: the file.

    Raises:
        ValueError: it is damaged, or holds no features that can be stored.
        OSError: it cannot be read.
    """
    made, content = path.stat().st_mtime, read_features(path)
    facts = folder.facts.get(path.relative_to(folder.path).as_posix())
    row = folder.feature_set
    if facts is not None and content.checksum != facts.get("values_xxh3_128"):
        raise ValueError(
            "its values are not those that were exported: it is damaged, or was replaced"
        )
    if facts is not None and row is not None and facts.get("feature_set") == row.spec.digest:
        try:
            return _restored(folder, row, facts, content)
        except (KeyError, TypeError, struct.error) as exc:
            raise ValueError(f"what {INDEX} says of it cannot be read: {exc!r:.200}") from exc
    if facts is None and row is not None:
        raise ValueError(
            f"{INDEX} does not say what it is, and {SET_FILE} is there: export it again"
        )
    stated = facts or content.facts  # the file says it too, if the index was left behind
    video = stated["video_id"] if stated else _id_of(folder, path, content)
    exported = str(stated.get("feature_set")) if stated else ""
    return _imported(folder, path, video, content, made, exported)


def _restored(
    folder: ImportedFolder, row: FeatureSet, facts: dict[str, Any], content: FileContent
) -> ImportedVideo:
    """Return what was exported, as the index says it was."""
    shape = (facts["rows"], facts["width"])
    stored = build(Storage, facts["storage"])
    values = content.values(is_bf16=stored.values == "bf16")
    granularity, scales = content.flat_scales(values)
    shapes = stored.scale_shapes(*shape)
    if values == stored.values and [scale.size for scale in scales] == [a * b for a, b in shapes]:
        scales = tuple(scale.reshape(shape) for scale, shape in zip(scales, shapes, strict=True))
    else:  # the format holds restored values
        stored = Storage(values, granularity)
    unknown = {"dtype": row.spec.encoder.dtype, "error": _AS_IMPORTED, "source": _NO_FILE}
    plain = plain_header(facts, unknown) | {
        "dataset": folder.dataset,
        "spec": row.spec.digest,
        "shape": shape,
        "storage": to_plain(stored),
        "payload_xxh3": 0,
    }
    header = from_map(plain)  # checks each field
    return ImportedVideo(row, header, content.data.reshape(shape), scales)


def _imported(
    folder: ImportedFolder, path: Path, video: str, content: FileContent, made: float, exported: str
) -> ImportedVideo:
    claims = content.claims
    if claims is not None:
        _check_dataset(claims.dataset, folder)
    values = content.values()
    granularity, scales = content.flat_scales(values)
    nframe = claims.nframe if claims else folder.nframe
    shape = claims.shape if claims else content.data.shape
    geometry, layout, frames = _geometry(shape, nframe, may_be_one=claims is not None)
    nframe = nframe or frames
    # What an index says of files without their feature_set.json is still not to be mixed.
    source = ("feature_set", exported) if exported else ("folder", os.path.abspath(folder.path))
    name, value = ("model_signature", claims.signature) if claims else source
    spec = FeatureSpec.of_imported(geometry, nframe, {name: value})
    storage = Storage(values, granularity)
    row = FeatureSet(spec, storage, None, f"files in {folder.path}", {}, time.time(), 0.0)
    rows = (layout.rows, geometry.row_width)
    header = Header(
        video_id=video,
        video_path=claims.video_path if claims else os.fspath(path),
        dataset=folder.dataset,
        spec=spec.digest,
        nframe=nframe,
        frame_indices=bytes(4 * frames),
        total_frames=1,
        fps=0.0,
        decoder=spec.decoder,
        doubt=IMPORTED,
        shape=rows,
        layout=layout,
        dtype=spec.encoder.dtype,
        storage=storage,
        source=_NO_FILE,
        error=_AS_IMPORTED,
        created=made,
    )
    return ImportedVideo(row, header, content.data.reshape(rows), scales)


def _check_dataset(stated: str, folder: ImportedFolder) -> None:
    """Raise ValueError if a file is neither of the dataset that it goes to nor of its folder's."""
    if stated not in (folder.dataset, os.path.basename(os.path.abspath(folder.path))):
        raise ValueError(
            f"it is of dataset {stated!r:.80}, not {folder.dataset!r}; import it into that one, and rename that with "
            "featstore mv, or name its own folder, if that has the name of its dataset"
        )


def _geometry(
    shape: tuple[int, ...], nframe: int | None, *, may_be_one: bool
) -> tuple[Geometry, RowLayout, int]:
    """Return the rows of features of `shape`, and the number of frames that they are of.

    Args:
        shape: (rows, width), (frames, tokens, width), or either with a leading 1.
        nframe: number of frames, or the most, if known.
        may_be_one: take rows that do not divide among the frames as one unit.
    """
    *axes, width = shape
    if len(axes) > 1 and axes[0] == 1 and (len(axes) == 3 or nframe not in (None, 1)):
        axes = axes[1:]  # of a batch
    if len(axes) not in (1, 2) or min(shape) < 1:
        raise ValueError(
            f"its values have the shape {shape}; (rows, width) or (frames, tokens, width) is read"
        )
    frames = axes[0] if len(axes) == 2 else nframe
    if nframe is not None and len(axes) == 2 and axes[0] > nframe:
        raise ValueError(f"its values have the shape {shape}, of more than {nframe} frames")
    if len(axes) == 1 and frames and axes[0] % frames:
        if not may_be_one:
            raise ValueError(f"its {axes[0]} rows cannot be those of {frames} frames")
        frames = None
    if frames is None:  # rows of which only the number is known
        geometry = Geometry(_MOST_TOKENS, width, by_video=True)
        return geometry, geometry.layout(1, (1, axes[0])), 1
    geometry = Geometry(axes[1] if len(axes) == 2 else axes[0] // frames, width)
    return geometry, geometry.layout(frames), frames


def _id_of(folder: ImportedFolder, path: Path, content: FileContent) -> str:
    if content.claims is None:
        return path.relative_to(folder.path).with_suffix("").as_posix()
    named = PurePath(content.claims.video_path)
    if folder.root is None:
        return named.stem
    if not named.is_relative_to(folder.root):
        raise ValueError(f"its video {str(named)!r:.200} is not in {folder.root}")
    return named.relative_to(folder.root).with_suffix("").as_posix()


def _read_index(path: Path) -> dict[str, dict[str, Any]]:
    """Return the lines of an index by the file that they are of; the last one of each, for it may be written again."""
    if not path.exists():
        return {}
    found = {}
    for line in path.read_bytes().split(b"\n"):
        try:
            facts = json.loads(line)
            if isinstance(facts["file"], str) and isinstance(facts["video_id"], str):
                found[facts["file"]] = facts
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # cut short by a kill
    return found


def _read_set(path: Path) -> FeatureSet | None:
    if not path.exists():
        return None
    if path.stat().st_size > _MAX_SET_BYTES:
        raise ValueError(
            f"{path.name} has {path.stat().st_size} bytes, at most {_MAX_SET_BYTES} are read"
        )
    try:
        return build(FeatureSet, json.loads(path.read_bytes()))
    except (StoreError, RecursionError) as exc:
        raise ValueError(str(exc)) from exc
