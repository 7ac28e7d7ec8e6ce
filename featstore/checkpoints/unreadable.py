"""Why a file of a checkpoint cannot be read: what its first bytes show it to be, and what to do about it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

MAX_HEADER_BYTES = 16 << 20  # a header of ten thousand tensors has 1 MB
_AGAIN = "fetch it again"
_LFS = b"version https://git-lfs.github.com/spec/"


def explain_unreadable(path: Path, exc: Exception) -> str:
    """Return what is wrong with a file in brackets and the remedy, as `(it is empty); fetch it again`.

    Args:
        path: the file.
        exc: what reading it raised, told if the file's bytes say no more.
    """
    try:
        with path.open("rb") as file:
            start = file.read(1024)
            size = path.stat().st_size
            found, remedy = _recognize(start, size) or (None, _AGAIN)
            if path.suffix == ".safetensors":
                found = found or _cut(file, size)
    except OSError as denied:
        found, remedy = str(denied), "check that this user may read it and that its disk is there"
    return f"({found or exc}); {remedy}"


def to_safetensors(name: str, new: str) -> str:
    """Return the remedy for the pickle `name`, which could be read as `new`."""
    return (
        "featstore opens no pickle, which could run any code: fetch a copy in safetensors, or convert each file in "
        "Python with `safetensors.torch.save_file({k: v.contiguous().clone() for k, v in "
        f"torch.load({name!r}, 'cpu', weights_only=True).items()}}, {new!r})`"
    )


def _recognize(start: bytes, size: int) -> tuple[str, str] | None:
    """Return what a file is that starts like this, and the remedy; None if that is not known."""
    text = start.lstrip().lower()
    if not size:
        return "it is empty", _AGAIN
    if start.startswith(_LFS):
        return (
            f"it is a Git LFS pointer, {size} bytes that stand for the file",
            "run `git lfs pull` in the clone it is in, or download the checkpoint with `hf download`",
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return (
            "it is a web page, as a server sends in place of a file",
            "fetch it again, after `hf auth login` if its page on the Hub asks for a login",
        )
    if start.startswith(b"GGUF"):
        return "it is a GGUF file of llama.cpp", "use the safetensors that it was made from"
    # Safetensors may start like this as well, but go on with a brace after 8 bytes.
    if start.startswith((b"PK\x03\x04", b"\x80")) and start[8:9] != b"{":
        return "it is a pickle, as torch.save writes", to_safetensors("FILE", "NEW_FILE")
    return None


def _cut(file: Any, size: int) -> str | None:
    """Return that a safetensors file is shorter or longer than its header says; None if it is neither, or unknown."""
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        return None
    if 8 + length > size:
        return f"it ends in its header: it has {size} bytes, the header {8 + length}"
    try:
        tensors = json.loads(file.read(length))
        end = max(
            tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"
        )
        whole = 8 + length + int(end)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError):
        return None
    if whole == size or whole >= 1 << 63:
        return None
    return f"it has {size} bytes, its header says {whole}"
