"""nvCOMP's batched calls on blocks that lie in a GPU's memory: lz4, zstd and ans.

Signatures as in the headers of nvCOMP 6 (nvcomp/lz4.h, zstd.h, ans.h); another major version is refused. All addresses
and tables lie on the GPU; a table holds one 64-bit number a block, statuses are of 32 bits and 0 where all went well.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from featstore.errors import MissingExtra, StoreError

VERSION = "6"
_REMEDY = "pip install 'featstore[nvcomp]'"
_NAMES = {"lz4": "LZ4", "zstd": "Zstd", "ans": "ANS"}
# nvcompBatched*DecompressDefaultOpts: backend; then for ANS the type, read from the block (NVCOMP_TYPE_BITS).
_DEFAULTS = {"lz4": (0, 0), "zstd": (0, 0), "ans": (0, 0xFF)}


class _Options(ctypes.Structure):
    """64 bytes, passed by value: two numbers that some codec sets, and zeros."""

    _fields_ = (("words", ctypes.c_uint32 * 2), ("zeros", ctypes.c_ubyte * 56))


@functools.cache
def refusal() -> str:
    """Return why nvCOMP cannot be called; nothing where it can."""
    try:
        _library()
    except MissingExtra as exc:
        return str(exc)
    return ""


def decompress_temp_bytes(codec: str, count: int, block_bytes: int, stream: int) -> int:
    """Return the scratch memory that `decompress` wants for `count` blocks of `block_bytes` at most."""
    found = ctypes.c_size_t()
    _call(
        f"nvcompBatched{_NAMES[codec]}DecompressGetTempSize",
        ctypes.c_size_t(count),
        ctypes.c_size_t(block_bytes),
        _options(codec),
        ctypes.byref(found),
        ctypes.c_size_t(count * block_bytes),
        ctypes.c_void_p(stream),
    )
    return found.value


def decompress(
    codec: str,
    *,
    sources: int,
    lengths: int,
    targets: int,
    rooms: int,
    found: int,
    statuses: int,
    count: int,
    temp: int,
    temp_bytes: int,
    stream: int,
) -> None:
    """Begin to decompress `count` blocks on `stream`: the addresses are those of tables.

    rooms: bytes each target has; nothing is written beyond. found: gets the bytes each block held.
    """
    _call(
        f"nvcompBatched{_NAMES[codec]}DecompressAsync",
        ctypes.c_void_p(sources),
        ctypes.c_void_p(lengths),
        ctypes.c_void_p(rooms),
        ctypes.c_void_p(found),
        ctypes.c_size_t(count),
        ctypes.c_void_p(temp),
        ctypes.c_size_t(temp_bytes),
        ctypes.c_void_p(targets),
        _options(codec),
        ctypes.c_void_p(statuses),
        ctypes.c_void_p(stream),
    )


def compress_temp_bytes(count: int, block_bytes: int) -> tuple[int, int]:
    """Return the scratch memory that `compress_ans` wants, and the most bytes a block of `block_bytes` becomes."""
    temp, largest = ctypes.c_size_t(), ctypes.c_size_t()
    _call(
        "nvcompBatchedANSCompressGetTempSize",
        ctypes.c_size_t(count),
        ctypes.c_size_t(block_bytes),
        _Options(),
        ctypes.byref(temp),
        ctypes.c_size_t(count * block_bytes),
        None,
    )
    _call(
        "nvcompBatchedANSCompressGetMaxOutputChunkSize",
        ctypes.c_size_t(block_bytes),
        _Options(),
        ctypes.byref(largest),
    )
    return temp.value, largest.value


def compress_ans(
    *,
    sources: int,
    lengths: int,
    targets: int,
    found: int,
    statuses: int,
    count: int,
    block_bytes: int,
    temp: int,
    temp_bytes: int,
) -> None:
    """Begin to compress `count` blocks on the default stream; found: gets the bytes each block became."""
    _call(
        "nvcompBatchedANSCompressAsync",
        ctypes.c_void_p(sources),
        ctypes.c_void_p(lengths),
        ctypes.c_size_t(block_bytes),
        ctypes.c_size_t(count),
        ctypes.c_void_p(temp),
        ctypes.c_size_t(temp_bytes),
        ctypes.c_void_p(targets),
        ctypes.c_void_p(found),
        _Options(),
        ctypes.c_void_p(statuses),
        None,
    )


def _options(codec: str) -> _Options:
    return _Options((ctypes.c_uint32 * 2)(*_DEFAULTS[codec]))


def _call(name: str, *arguments: Any) -> None:
    code = getattr(_library(), name)(*arguments)
    if code != 0:
        raise StoreError(f"nvCOMP refused {name} (error {code}); compress with zstd instead")


@functools.cache
def _library() -> Any:
    try:
        from nvidia import libnvcomp
    except ImportError as exc:
        raise MissingExtra(f"nvCOMP is not installed; {_REMEDY}") from exc
    version = libnvcomp.__version__
    if version.split(".")[0] != VERSION:
        raise MissingExtra(f"nvCOMP {version} is installed, featstore calls {VERSION}; {_REMEDY}")
    library = libnvcomp.load_library()
    if library is None:
        raise MissingExtra(f"nvCOMP {version} is installed and cannot be loaded; {_REMEDY}")
    return library
