"""What an encoder is: frames in, features out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from featstore.spec import EncoderIdentity


class Encoder(Protocol):
    """Frames in, features out; building one reads configs and weights but computes nothing.

    An ingest calls it from one thread, which is not the caller's. If it has a method `load()`, that is called before
    the first frames are there. One on a GPU should be a `GpuEncoder`.

    Attributes:
        identity: what determines its features.
        batch_frames: the number of frames it prefers to encode at once.
        origin: what the user called it, for messages, such as a checkpoint's folder or Hub id.
    """

    identity: EncoderIdentity
    batch_frames: int
    origin: str

    def encode(self, frames: NDArray[np.uint8]) -> Any:
        """Return the features of `frames`.

        Args:
            frames: (B, H, W, 3) uint8, resized and cropped already.

        Returns:
            (B, T, D), an array or a tensor in the encoder's dtype, on the encoder's device.
        """
        ...


class GpuEncoder(Encoder, Protocol):
    """An encoder whose work can be queued: transfers, encoding and quantizing then overlap.

    Attributes:
        device: the torch.device it computes on, of type `cuda`.
    """

    device: Any

    def encode_on_device(self, frames: Any) -> Any:
        """Return the features of a uint8 tensor on `device`, queued on the current stream and not waited for.

        Args:
            frames: (B, H, W, 3), as for `encode`.

        Returns:
            (B, T, D), a tensor on `device`.
        """
        ...
