"""What an encoder is: frames in, features out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from featstore.errors import command_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from featstore.preprocessing import Preprocessing
    from featstore.spec import EncoderIdentity


class Encoder(Protocol):
    """Frames in, features out; building one reads configs and weights but computes nothing.

    An ingest calls it from one thread, which is not the caller's. Further methods are called if it has them: `load()`
    before the first frames are there; `grid(height, width)`, if its geometry is `by_video`, which returns (height,
    width) of the tokens of a unit of prepared frames of that size; `extra_rows()`, once, if its geometry has such,
    which returns (extra_rows, row_width), of the type and dtype of what `encode` returns. One on a GPU should be a
    `GpuEncoder`.

    Attributes:
        identity: what determines its features, beside the frames.
        batch_frames: the number of frames it prefers to encode at once.
        origin: what the user called it, for messages, such as a checkpoint's folder or Hub id.
        names: further names of its parts, for people, as `{"vision_tower": "openai/clip-vit-large-patch14-336"}`.
    """

    identity: EncoderIdentity
    batch_frames: int
    origin: str
    names: dict[str, str]

    @property
    def preprocessing(self) -> Preprocessing:
        """Return what happens to a frame before; a property here, so that an encoder's may be of one kind."""
        ...

    def encode(self, frames: NDArray[np.uint8]) -> Any:
        """Return the features of the frames of some units.

        Args:
            frames: (B, H, W, 3) uint8 if a frame is a unit, else (B, frames_per_unit, H, W, 3), after `preprocessing`;
                all of one size.

        Returns:
            (B, tokens, row_width), an array or a tensor in the encoder's dtype, on the encoder's device; a tensor is a
            new one each time.
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
            frames: as for `encode`.

        Returns:
            (B, tokens, row_width), a tensor on `device`.
        """
        ...


def checkpoint_options(encoder: Encoder) -> str:
    """Return the options of `featstore ingest` that name an encoder's checkpoint, and the CLIP model it was given."""
    tower = getattr(encoder, "vision_tower", None)
    return command_line("", model_path=encoder.origin, vision_tower=tower)
