"""How a record's values are stored: their type, the scales of int8, the codec; and how many bytes that takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from featstore import defaults

# How values can be stored, and numpy's name for it; bf16, which numpy lacks, as its raw bits.
STORED_DTYPES = {"int8": "<i1", "bf16": "<u2", "fp16": "<f2", "fp32": "<f4"}
# What int8 scales there are: one per channel and one per token, or one per channel, per token, or for all.
GRANULARITIES = ("channel_token", "channel", "token", "tensor")
NO_SCALE = "none"  # the granularity of floats
CODEC_NAMES = ("raw", "lz4", "zstd", "planes")

# In place of a Storage: the encoder's own dtype as byte planes, see `storage_for`.
LOSSLESS = "lossless"

PAGE = 4096
MAX_ID_BYTES = 4096
MAX_HEADER_BYTES = 1 << 20
MAX_PREFIX_BYTES = 64 << 20  # header, scales and padding: token scales of 16 million tokens
MAX_PAYLOAD_BYTES = (1 << 32) - 1 - MAX_PREFIX_BYTES  # LMDB takes no value of 4 GiB
# How many times smaller a codec makes values, at least and at most: trained ViT's features through a random projector,
# and Gaussian ones whose channels differ in size. Those of lz4, and all of raw, stay as they are.
_RATIOS = {
    ("int8", "zstd"): (1.0, 1.11),
    ("bf16", "zstd"): (1.25, 1.3),
    ("fp16", "zstd"): (1.06, 1.1),
    ("fp32", "zstd"): (1.06, 1.1),
    ("bf16", "planes"): (1.42, 1.48),
    ("fp16", "planes"): (1.14, 1.19),
    ("fp32", "planes"): (1.17, 1.21),
}
# A header is a few hundred bytes, an id and a path; the indices of the frames and the scales are added to it.
_HEADER_ROOM = 64 << 10


@dataclass(frozen=True)
class Storage:
    """How values are stored; they come back as they were if that is an encoder's own dtype.

    Args:
        values: one of STORED_DTYPES.
        granularity: of int8's scales, one of GRANULARITIES; `none` for floats.
        codec: how the payload is compressed, without loss, one of CODEC_NAMES; `planes` is for floats.

    Raises:
        ValueError: values cannot be stored so.

    >>> Storage("fp16")
    Storage(values='fp16', granularity='none', codec='raw')
    """

    values: str = defaults.VALUES
    granularity: str = ""
    codec: str = defaults.CODEC

    def __post_init__(self) -> None:
        """Check the names, and take the default granularity if none is given."""
        if self.values not in STORED_DTYPES:
            raise ValueError(f"values are {self.values!r}; use one of {', '.join(STORED_DTYPES)}")
        if not self.granularity:
            default = defaults.GRANULARITY if self.values == "int8" else NO_SCALE
            object.__setattr__(self, "granularity", default)
        if self.granularity not in (GRANULARITIES if self.values == "int8" else (NO_SCALE,)):
            raise ValueError(
                f"granularity is {self.granularity!r} with {self.values} values; int8 takes one of "
                f"{', '.join(GRANULARITIES)}, floats take {NO_SCALE}"
            )
        if self.codec not in CODEC_NAMES:
            raise ValueError(f"codec is {self.codec!r}; use one of {', '.join(CODEC_NAMES)}")
        if self.codec == "planes" and self.itemsize == 1:
            raise ValueError("the codec planes takes floats apart; use zstd with int8")

    @property
    def itemsize(self) -> int:
        """Return the bytes of a value."""
        return int(STORED_DTYPES[self.values][-1])

    @property
    def ratios(self) -> tuple[float, float]:
        """Return how many times smaller the codec makes features of a vision encoder, at least and at most."""
        return _RATIOS.get((self.values, self.codec), (1.0, 1.0))

    def scale_shapes(self, rows: int, width: int) -> tuple[tuple[int, int], ...]:
        """Return the shapes of the float32 scales of features (rows, width), over which each broadcasts.

        Two for `channel_token`, the tokens' and the channels'; none for floats.
        """
        token, channel = (rows, 1), (1, width)
        return {
            "channel_token": (token, channel),
            "channel": (channel,),
            "token": (token,),
            "tensor": ((1, 1),),
            NO_SCALE: (),
        }[self.granularity]

    def scale_bytes(self, shape: tuple[int, int]) -> int:
        """Return the bytes of the scales of features of `shape`."""
        return 4 * sum(map(math.prod, self.scale_shapes(*shape)))

    def payload_bytes(self, shape: tuple[int, int]) -> int:
        """Return the bytes of the payload of features of `shape` before compression."""
        return math.prod(shape) * self.itemsize

    def record_room(self, shape: tuple[int, int], nframe: int) -> tuple[int, int]:
        """Return the most bytes that prefix and payload of a record take; `shape` is the largest of its features."""
        return (
            _HEADER_ROOM + 4 * nframe + self.scale_bytes(shape),
            self.payload_bytes(shape),
        )

    def record_bytes(self, shape: tuple[int, int], nframe: int) -> int:
        """Return the most bytes that a record usually takes, uncompressed: its header fits a page."""
        return PAGE + 4 * nframe + self.scale_bytes(shape) + self.payload_bytes(shape)

    def __str__(self) -> str:
        """Return `int8/channel`, `fp16` or `fp16 planes`, for people."""
        return storage_text(self.values, self.granularity, self.codec)


def lossless(dtype: str) -> Storage:
    """Return how features that were computed in `dtype` are stored bit for bit, in the fewest bytes."""
    return Storage(dtype, codec="planes")


def storage_for(asked: Storage | str | None, dtype: str) -> Storage | None:
    """Return the storage that is asked for, of features computed in `dtype`; None if None is.

    Args:
        asked: a Storage, or `lossless`.
        dtype: fp16, bf16 or fp32.

    Raises:
        ValueError: it is neither.
    """
    if asked == LOSSLESS:
        return lossless(dtype)
    if not isinstance(asked, Storage | None):
        raise ValueError(f"storage is {asked!r}; pass a featstore.Storage, {LOSSLESS!r} or None")
    return asked


def storage_text(values: str, granularity: str, codec: str) -> str:
    """Return what a `Storage` of these is called for people; of names that only a newer release knows, too."""
    text = values if granularity == NO_SCALE else f"{values}/{granularity}"
    return text if codec == "raw" else f"{text} {codec}"
