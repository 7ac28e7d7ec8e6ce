"""What an encoder is: frames in, features out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from featstore.spec import EncoderIdentity


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
