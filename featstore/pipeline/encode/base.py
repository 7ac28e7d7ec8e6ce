"""What the parent and an encoder say to each other, and what a batch encoder does: on the host, or on a GPU."""

# ruff: noqa: TC001 (the types of fields are read when a message is rebuilt)

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from featstore.encoders.registry import EncoderRecipe
from featstore.preprocessing import Preprocessing
from featstore.records.budget import ErrorBudget
from featstore.records.quantization import QuantError
from featstore.records.storage import Storage
from featstore.spec import EncoderIdentity, FeatureSpec
from featstore.system.processes import Slots

if TYPE_CHECKING:
    from featstore.pipeline.encode.batches import Chunk


@dataclass(frozen=True)
class EncoderSetup:
    """The first message to an encoder process; batch_frames: frames at once. frames, records: the shared memory."""

    recipe: EncoderRecipe
    spec: FeatureSpec
    storage: Storage
    batch_frames: int
    frames: Slots
    records: Slots
    budget: ErrorBudget


@dataclass(frozen=True)
class EncoderReady:
    """An encoder process has built its encoder; the parent compares what determines its features with its own."""

    identity: EncoderIdentity
    preprocessing: Preprocessing


@dataclass(frozen=True)
class BatchProgress:
    """Progress of a batch. read: slots whose frames were read, free again. busy: seconds of work it took."""

    read: tuple[int, ...]
    busy: float


@dataclass(frozen=True)
class EncodeResult:
    """A video's payload is in its record's slot.

    grid: (height, width) of a unit's tokens, if they differ by video. storage: how its values are stored. scales:
    float32, as bytes. busy: seconds of work it took.
    """

    video: int
    grid: tuple[int, int] | None
    storage: Storage
    scales: bytes
    error: QuantError
    busy: float


@dataclass(frozen=True)
class EncodeRefusal:
    """A video's features cannot be stored, for this reason. busy: seconds of work it took."""

    video: int
    reason: str
    busy: float


EncoderAnswer: TypeAlias = BatchProgress | EncodeResult | EncodeRefusal


class BatchEncoder(Protocol):
    """Encodes batches and quantizes videos; `depth` batches at once keep it busy."""

    depth: int

    @property
    def in_flight(self) -> int:
        """Return the number of batches that are not encoded yet."""
        ...

    @property
    def owes(self) -> bool:
        """Return whether answers are to come: also a record on its way from the GPU is one."""
        ...

    def submit(self, batch: list[Chunk]) -> None:
        """Take a batch to work."""
        ...

    def collect(self) -> list[EncoderAnswer]:
        """Return the answers since the last call, without waiting."""
        ...

    def close(self) -> None:
        """Release what it holds."""
        ...
