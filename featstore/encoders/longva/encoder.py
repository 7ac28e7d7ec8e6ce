"""LongVA's vision side as an encoder: frames in, the features that LongVA splices into its prompt out."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from featstore import defaults
from featstore.encoders.longva.checkpoint import read_checkpoint
from featstore.encoders.longva.weights import find_weights
from featstore.errors import FeatstoreError
from featstore.geometry import Geometry
from featstore.preprocessing import normalization_table
from featstore.spec import EncoderIdentity
from featstore.system.forks import tell_of_forks
from featstore.torch.arithmetic import own_arithmetic
from featstore.torch.forked import about_to_compute, computing
from featstore.torch.upload.cudart import refuse_missing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from featstore.encoders.longva.fused import FusedVision
    from featstore.encoders.longva.modeling import VisionModel

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class LongVAEncoder:
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
        self.origin = str(checkpoint)
        self.vision_tower = None if vision_tower is None else str(vision_tower)
        self.device = _device(device)
        on_cuda = self.device.type == "cuda"
        name = dtype or ("fp16" if on_cuda else "fp32")
        if name not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
        if batch_frames is not None and batch_frames < 1:
            raise ValueError(f"batch_frames is {batch_frames}; it must be at least 1")
        self.dtype = DTYPES[name]
        self.batch_frames = batch_frames or (
            defaults.BATCH_FRAMES_CUDA if on_cuda else defaults.BATCH_FRAMES_CPU
        )
        self._model: VisionModel | None = None
        self._fused: FusedVision | None = None
        self._table = torch.empty(0)
        self._loading = threading.Lock()
        tell_of_forks(self)

        self.checkpoint = found = read_checkpoint(checkpoint, vision_tower=vision_tower)
        self.preprocessing = found.clip.preprocessing()
        self.names = {"vision_tower": found.vision.tower_name}
        self._weights = find_weights(found)
        self.identity = EncoderIdentity(
            family="longva",
            weights=self._weights.digest,
            dtype=name,
            geometry=Geometry(
                tokens_per_unit=found.vision.tokens_per_frame,
                hidden_dim=found.vision.hidden_dim,
                grid=(found.vision.pooled_side, found.vision.pooled_side),
            ),
            settings=found.vision.settings,
        )

    def __repr__(self) -> str:
        """Return checkpoint, weights, device and dtype."""
        about = f"weights {self.identity.weights[:8]}, {self.device}, {self.identity.dtype}"
        return f"<featstore.encoders.LongVAEncoder {self.origin!r}: {about}>"

    def load(self) -> None:
        """Build the model on its device in its dtype, unless that is done; `encode` does so by itself.

        Raises:
            CheckpointError: the weights are no longer those of `identity`.
        """
        from featstore.encoders.longva.fused import fused_vision
        from featstore.encoders.longva.modeling import build_model  # loads transformers

        about_to_compute(self.device)
        with self._loading, self._out_of_memory("loading the vision tower"):
            if self._model is not None:
                return
            # Pixels take 256 values a channel, so it is enough to round these.
            table = torch.from_numpy(normalization_table(self.preprocessing))
            self._table = table.T.to(self.device, self.dtype, copy=True)  # (3, 256)
            weights = self._weights.load(self.device, self.dtype)
            model = build_model(self.checkpoint.vision, weights, self.device)
            self._fused = fused_vision(model, self._table)
            self._model = model

    def after_fork(self) -> None:
        """Let go of a lock that a thread of the parent may hold."""
        self._loading = threading.Lock()

    def encode(self, frames: NDArray[np.uint8], *, image: bool = False) -> torch.Tensor:
        """Return the features of `frames`, all encoded at once, whatever autocast or TF32 the caller has set in torch.

        Args:
            frames: (B, H, W, 3) uint8, prepared.
            image: they are tiles of an image, which are pooled in another way; see `VisionModel.forward`.

        Returns:
            (B, T, D) on `device` in `dtype`.

        Raises:
            ValueError: the frames have another shape or dtype.
            FeatstoreError: the GPU's memory does not hold B frames.
        """
        self._check(frames)
        self.load()
        # Frames may be in read-only shared memory, which torch cannot wrap; page-locked memory uploads five times
        # faster.
        on_cuda = self.device.type == "cuda"
        staged = torch.empty(frames.shape, dtype=torch.uint8, device="cpu", pin_memory=on_cuda)
        staged.numpy()[...] = frames
        return self.encode_on_device(staged.to(self.device, non_blocking=True), image=image)

    @torch.inference_mode()
    def encode_on_device(self, frames: torch.Tensor, *, image: bool = False) -> torch.Tensor:
        """Return what `encode` returns, of frames that are on `device` already; on CUDA queued, not waited for."""
        self._check(frames)
        self.load()
        assert self._model is not None
        with (
            self._out_of_memory(f"encoding {len(frames)} frames"),
            computing(self.device),
            own_arithmetic(self.device),
        ):
            if self._fused is not None:
                return self._fused(frames, image=image)
            features: torch.Tensor = self._model(self._pixels(frames), image=image)
            return features

    def _check(self, frames: NDArray[np.uint8] | torch.Tensor) -> None:
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

    @contextmanager
    def _out_of_memory(self, doing: str) -> Iterator[None]:
        try:
            yield
        except torch.cuda.OutOfMemoryError as exc:
            raise FeatstoreError(
                f"{self.device} ran out of memory {doing} in {self.identity.dtype} ({exc}); "
                f"ingest with a smaller --batch-frames than {self.batch_frames}, or take another GPU with --device, in "
                "Python device="
            ) from exc


def _device(name: str | torch.device) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {str(name)!r}; use auto, cpu, cuda or cuda:0")
    if device.type == "cuda" and device.index is None and torch.cuda.is_initialized():
        # It may be used in another thread, which starts with the first GPU as its current one.
        return torch.device("cuda", torch.cuda.current_device())
    refuse_missing(device)
    return device
