"""LongVA's vision side as an encoder: frames in, the features that LongVA splices into its prompt out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from featstore import defaults
from featstore.encoders.longva.checkpoint import read_checkpoint
from featstore.encoders.longva.weights import find_weights
from featstore.encoders.torch_encoder import TorchEncoder
from featstore.geometry import Geometry
from featstore.preprocessing import normalization_table
from featstore.spec import EncoderIdentity

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from featstore.encoders.longva.fused import FusedVision
    from featstore.encoders.longva.modeling import VisionModel
    from featstore.preprocessing import ShortestEdgeCrop


class LongVAEncoder(TorchEncoder):
    """The tower, projector and pooling of a LongVA checkpoint; see featstore.encoders.Encoder.

    Attributes:
        identity: what determines its features, beside the frames.
        preprocessing: what happens to a frame before.
        names: what the checkpoint's config calls the vision tower.
        origin: the checkpoint, as the user called it.
        vision_tower: the CLIP folder or name that was given, None for the one that the checkpoint's config names.
        batch_frames: the number of frames to encode at once.
        device: the torch.device it computes on.
        dtype: the torch.dtype it computes in.
        checkpoint: its configs, as they were read.
    """

    cuda_dtype = "fp16"
    preprocessing: ShortestEdgeCrop

    def __init__(
        self,
        checkpoint: str | Path,
        *,
        vision_tower: str | Path | None = None,
        device: str | torch.device = defaults.DEVICE,
        dtype: str | None = None,
        batch_frames: int | None = None,
    ) -> None:
        """Read the configs of `checkpoint` and hash the vision weights; the model is built by `load`.

        Args:
            checkpoint: a folder, or a name on the Hub, from which only the files that hold vision tensors are fetched.
            vision_tower: a CLIP folder or name to use in place of the one that the checkpoint's config names.
            device: a torch device; `auto` is CUDA if there is a GPU, else the CPU.
            dtype: fp16, bf16 or fp32; by default fp16 on CUDA and fp32 elsewhere.
            batch_frames: number of frames to encode at once; by default 128 on CUDA, 16 elsewhere.

        Raises:
            CheckpointError: the checkpoint is not LongVA's, is incomplete, or needs something featstore does not do.
            ValueError: a device, dtype or number is invalid.
        """
        super().__init__(str(checkpoint), device=device, dtype=dtype, batch_frames=batch_frames)
        self.vision_tower = None if vision_tower is None else str(vision_tower)
        self._fused: FusedVision | None = None
        self._table = torch.empty(0)
        self.checkpoint = found = read_checkpoint(checkpoint, vision_tower=vision_tower)
        self.preprocessing = found.clip.preprocessing()
        self.names = {"vision_tower": found.vision.tower_name}
        self.weights = find_weights(found)
        self.identity = EncoderIdentity(
            family="longva",
            weights=self.weights.digest,
            dtype=self.dtype_name,
            geometry=Geometry(
                tokens_per_unit=found.vision.tokens_per_frame,
                hidden_dim=found.vision.hidden_dim,
                grid=(found.vision.pooled_side, found.vision.pooled_side),
            ),
            settings=found.vision.settings,
        )

    def build(self, weights: dict[str, torch.Tensor]) -> VisionModel:
        """Return the tower, projector and pooling with these weights."""
        from featstore.encoders.longva.fused import fused_vision
        from featstore.encoders.longva.modeling import build_model  # loads transformers

        # Pixels take 256 values a channel, so it is enough to round these.
        table = torch.from_numpy(normalization_table(self.preprocessing))
        self._table = table.T.to(self.device, self.dtype, copy=True)  # (3, 256)
        model = build_model(self.checkpoint.vision, weights, self.device)
        self._fused = fused_vision(model, self._table)
        return model

    def compute(self, model: Any, frames: torch.Tensor, *, image: bool = False) -> torch.Tensor:
        """Return the features (B, T, D) of frames (B, H, W, 3) on the device.

        Args:
            model: what `build` returned.
            frames: uint8, prepared.
            image: they are tiles of an image, which are pooled in another way; see `VisionModel.forward`.
        """
        if self._fused is not None:
            return self._fused(frames, image=image)
        features: torch.Tensor = model(self._pixels(frames), image=image)
        return features

    def check(self, frames: NDArray[np.uint8] | torch.Tensor) -> None:
        """Raise ValueError unless the frames are as `preprocessing` makes them."""
        height, width = self.preprocessing.max_frame
        shape, dtype = tuple(frames.shape), str(frames.dtype).removeprefix("torch.")
        if dtype != "uint8" or shape[1:] != (height, width, 3) or not len(frames):
            raise ValueError(
                f"frames are {dtype} of shape {shape}; expected uint8 (B, {height}, {width}, 3), "
                "as featstore.preprocessing.prepare_frame makes them"
            )

    def _pixels(self, frames: torch.Tensor) -> torch.Tensor:
        channels = [self._table[c][frames[..., c].int()] for c in range(3)]
        return torch.stack(channels, dim=1)  # (B, H, W, 3) -> (B, 3, H, W)
