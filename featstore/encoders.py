"""What an encoder is, the table of their names, recipes to build one elsewhere, and a toy one that runs anywhere."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from featstore.preprocess import Preprocessing, normalization_table
from featstore.spec import EncoderIdentity

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ENCODERS = {
    "longva": "featstore.longva.vision:LongVAEncoder",
    "toy": "featstore.encoders:ToyEncoder",
}


class Encoder(Protocol):
    """Frames in, features out; building one reads configs and weights but computes nothing.

    identity: what determines its features.
    batch_frames: frames it likes to see at once.
    origin: what the user called it, for messages; as a checkpoint's folder or Hub id.

    An ingest calls it from one thread, which is not the caller's. One that has a method `load()` is told to get ready
    before the first frames are there. One on a GPU does well to be a `GpuEncoder`.
    """

    identity: EncoderIdentity
    batch_frames: int
    origin: str

    def encode(self, frames: NDArray[np.uint8]) -> Any:
        """Return features (B, T, D) of `frames` (B, H, W, 3) uint8, resized and cropped already.

        An array or a tensor in the encoder's dtype, on the encoder's device.
        """
        ...


class GpuEncoder(Encoder, Protocol):
    """An encoder whose work can be queued: transfers, encoding and quantizing then overlap.

    device: the torch.device it computes on, of type `cuda`.
    """

    device: Any

    def encode_there(self, frames: Any) -> Any:
        """Return what `encode` does of a uint8 tensor on `device`, queued on the current stream and not waited for."""
        ...


def get_encoder(name: str, **options: Any) -> Encoder:
    """Return the encoder called `name`, built with `options`."""
    try:
        target = ENCODERS[name]
    except KeyError:
        raise ValueError(
            f"no encoder is called {name!r}; there are {', '.join(ENCODERS)}"
        ) from None
    module, _, cls = target.partition(":")
    encoder: Encoder = getattr(import_module(module), cls)(**options)
    return encoder


@dataclass(frozen=True)
class EncoderRecipe:
    """How to build an encoder in whatever process it shall run: its name, and options that are plain values.

    batch_frames: frames at once, in place of what the encoder likes.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    batch_frames: int | None = None

    def build(self) -> Encoder:
        """Return the encoder."""
        encoder = get_encoder(self.name, **self.options)
        if self.batch_frames is not None:
            encoder.batch_frames = self.batch_frames
        return encoder

    def __str__(self) -> str:
        """Return a name for messages: `longva on cuda:1`."""
        device = self.options.get("device")
        return f"{self.name} on {device}" if device else self.name

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, to send to another process."""
        return {"name": self.name, "options": self.options, "batch_frames": self.batch_frames}


class ToyEncoder:
    """Averages a few patches of each frame and mixes them with fixed random weights; numpy alone.

    A real encoder's shape without its cost: for tests, for trying featstore out, and to see what an encoder must offer.
    Its features are the same bytes on any machine, and in any batch.
    """

    def __init__(
        self, *, grid: int = 2, hidden_dim: int = 8, size: int = 28, seed: int = 0
    ) -> None:
        """Draw the weights: `grid * grid` tokens a frame, frames of `size` pixels square."""
        import numpy as np

        pre = Preprocessing(size, size, size)
        self._mix = np.random.default_rng(seed).normal(size=(3, hidden_dim)).astype(np.float32)
        self._grid = grid
        self._table = normalization_table(pre)
        self.origin = "toy"
        self.batch_frames = 32
        self.identity = EncoderIdentity(
            name="toy",
            weights=hashlib.sha256(self._mix.tobytes()).hexdigest(),
            vision_tower="toy",
            select_layer=-1,
            select_feature="patch",
            projector="linear",
            pooling="none",
            architecture=f"grid={grid}",
            preprocessing=pre,
            dtype="fp32",
            tokens_per_frame=grid * grid,
            hidden_dim=hidden_dim,
        )

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return features (B, grid * grid, hidden_dim) float32 of `frames` (B, H, W, 3) uint8."""
        import numpy as np

        count, height, width, _ = frames.shape
        pixels = self._table[frames, np.arange(3)]  # (B, H, W, 3) float32
        side = self._grid
        patches = pixels.reshape(count, side, height // side, side, width // side, 3)
        means = patches.mean(axis=(2, 4), dtype=np.float32).reshape(count, side * side, 3)
        # (B, T, 3) -> (B, T, D); a matrix product would round as the local BLAS does.
        features: NDArray[np.float32] = (means[..., None] * self._mix).sum(axis=-2)
        return features
