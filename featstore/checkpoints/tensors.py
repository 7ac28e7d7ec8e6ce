"""The safetensors of a checkpoint: listed from headers and index, opened, and checked before they are read."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from featstore.checkpoints.config_fields import read_json
from featstore.checkpoints.other_weights import (
    INDEX,
    SINGLE,
    list_numbered,
    no_safetensors,
    without_index,
)
from featstore.checkpoints.quantized import FLOATS, refuse_quantized, remedy_for_dtype
from featstore.checkpoints.unreadable import explain_unreadable
from featstore.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from featstore.checkpoints.files import Files

Shape = tuple[int, ...]


def list_tensors(files: Files) -> dict[str, str]:
    """Return name -> safetensors file of every tensor: from the header of the one file, or the index of several.

    Without an index, from the headers of numbered files, if all are there and none repeats a tensor of another.

    Raises:
        CheckpointError: there are no safetensors, they are quantized, or header or index is damaged.
    """
    listing = _list_tensors(files)
    refuse_quantized(files, listing)
    return listing


def _list_tensors(files: Files) -> dict[str, str]:
    single = files.find(SINGLE)
    if single:
        with open_tensors(single, framework="np") as tensors:
            return dict.fromkeys(tensors.keys(), SINGLE)
    index = read_json(files, INDEX)
    if index is None:
        return _list_numbered_tensors(files)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict):
        raise index.wrong("weight_map", "an object of tensor names and their files")
    for shard in weight_map.values():
        if not _is_plain(shard):
            raise CheckpointError(
                f"{index.origin} names the file {shard!r}, expected a plain name such as "
                "'model-00001-of-00004.safetensors'; fetch the index again"
            )
    return weight_map


def find_shard(files: Files, shard: str, name: str) -> Path:
    """Return the path of the safetensors file `shard`, fetched if necessary.

    Args:
        files: the checkpoint.
        shard: the file's name, as `list_tensors` gives it.
        name: the tensor it is needed for.

    Raises:
        CheckpointError: there is no such file.
    """
    path = files.find(shard)
    if path is None:
        raise CheckpointError(
            f"{files} has no {shard}, in which its index places {name!r}{files.caveat}; fetch that file"
        )
    return path


@contextmanager
def open_tensors(path: Path, framework: str = "pt") -> Iterator[Any]:
    """Give the open safetensors file; its damage becomes CheckpointError.

    Args:
        path: the file.
        framework: `pt` for torch tensors, `np` for arrays.
    """
    try:
        with safe_open(path, framework=framework) as tensors:
            yield tensors
    except (SafetensorError, OSError) as exc:
        raise CheckpointError(
            f"{path} cannot be read as safetensors {explain_unreadable(path, exc)}"
        ) from exc


def check_tensor(
    opened: Any, path: Path, name: str, shape: Shape, *, more_rows: bool = False
) -> None:
    """Raise CheckpointError unless a tensor is in its file, of the shape that the config implies, and a plain float.

    Args:
        opened: the open file, from `open_tensors`.
        path: the file's path, for messages.
        name: the tensor's name in the file.
        shape: the expected shape.
        more_rows: the tensor may have more rows than `shape`, if it has two axes.
    """
    if name not in opened.keys():  # noqa: SIM118, an open safetensors file is not a mapping
        raise CheckpointError(
            f"{path} lacks {name!r}, which the index places there; fetch both again"
        )
    header = opened.get_slice(name)
    found = tuple(header.get_shape())
    longer = more_rows and len(found) == 2 and found[0] > shape[0] and found[1:] == shape[1:]
    if found != shape and not longer:
        raise CheckpointError(
            f"{path} has {name!r} of shape {found}, its config makes it {shape}; do config and weights belong together?"
        )
    check_dtype(opened, path, name)


def check_dtype(opened: Any, path: Path, name: str) -> None:
    """Raise CheckpointError unless a tensor of an open file is a plain float: no value may be taken for a weight."""
    dtype = opened.get_slice(name).get_dtype()
    if dtype not in FLOATS:
        raise CheckpointError(
            f"{path} has {name!r:.200} as {dtype}, expected one of {', '.join(FLOATS)}; {remedy_for_dtype(dtype)}"
        )


def _list_numbered_tensors(files: Files) -> dict[str, str]:
    """Return name -> file of every tensor of numbered files without an index, if it is certain that these are all."""
    listing: dict[str, str] = {}
    for shard in list_numbered(files):
        with open_tensors(find_shard(files, shard, shard), framework="np") as tensors:
            names = list(tensors.keys())
        for name in names:
            if name in listing:
                raise without_index(
                    files, f"{name!r:.200} in {listing[name]} and in {shard}", f"fetch {INDEX}"
                )
            listing[name] = shard
    if not listing:
        raise no_safetensors(files)
    return listing


def _is_plain(shard: Any) -> bool:
    return (
        isinstance(shard, str)
        and shard.endswith(".safetensors")
        and "\\" not in shard
        and "\0" not in shard
        and PurePosixPath(shard).name == shard
    )
