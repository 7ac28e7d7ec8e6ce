"""What encoders on torch share: device and dtype, weights that are loaded late, frames on their way to the device."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from featstore import defaults
from featstore.errors import FeatstoreError
from featstore.spec import DTYPES
from featstore.system.forks import tell_of_forks

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from featstore.checkpoints.digest import DigestedWeights
    from featstore.preprocessing import Preprocessing
    from featstore.spec import EncoderIdentity


class TorchEncoder:
    """An encoder whose model is built by `build` and applied by `compute`; see featstore.encoders.Encoder.

    Attributes:
        device: the torch.device it computes on.
        dtype: the torch.dtype it computes in.
        batch_frames: the number of frames to encode at once.
        origin: the checkpoint, as the user called it.
        names: further names of its parts.
        identity: what determines its features, beside the frames; set by the subclass, as are those below.
        preprocessing: what happens to a frame before.
        weights: the tensors it uses.
    """

    cuda_dtype = "bf16"  # what it computes in by default where there is a GPU
    identity: EncoderIdentity
    preprocessing: Preprocessing
    weights: DigestedWeights

    def __init__(
        self,
        checkpoint: str,
        *,
        device: str | torch.device = defaults.DEVICE,
        dtype: str | None = None,
        batch_frames: int | None = None,
    ) -> None:
        """Choose device and dtype.

        Args:
            checkpoint: a folder, or a name on the Hub.
            device: a torch device; `auto` is CUDA if there is a GPU, else the CPU.
            dtype: fp16, bf16 or fp32; by default `cuda_dtype` on CUDA and fp32 elsewhere.
            batch_frames: number of frames to encode at once; by default 128 on CUDA, 16 elsewhere.

        Raises:
            ValueError: a device, dtype or number is invalid.
        """
        from featstore.torch.kernels.quantize import TORCH_DTYPES

        self.origin = checkpoint
        self.names: dict[str, str] = {}
        self.device = _device(device)
        on_cuda = self.device.type == "cuda"
        self.dtype_name = dtype or (self.cuda_dtype if on_cuda else "fp32")
        if self.dtype_name not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
        if batch_frames is not None and batch_frames < 1:
            raise ValueError(f"batch_frames is {batch_frames}; it must be at least 1")
        self.dtype: torch.dtype = TORCH_DTYPES[self.dtype_name]
        self.batch_frames = batch_frames or (
            defaults.BATCH_FRAMES_CUDA if on_cuda else defaults.BATCH_FRAMES_CPU
        )
        self._model: Any = None
        self._loading = threading.Lock()
        tell_of_forks(self)

    def __repr__(self) -> str:
        """Return checkpoint, weights, device and dtype."""
        about = f"weights {self.identity.weights[:8]}, {self.device}, {self.identity.dtype}"
        return f"<featstore.encoders.{type(self).__name__} {self.origin!r}: {about}>"

    def build(self, weights: dict[str, torch.Tensor]) -> Any:
        """Return the model with these weights, on the device."""
        raise NotImplementedError

    def compute(self, model: Any, frames: torch.Tensor) -> torch.Tensor:
        """Return the features (B, tokens, row_width) of uint8 frames on the device."""
        raise NotImplementedError

    def check(self, frames: NDArray[np.uint8] | torch.Tensor) -> None:
        """Raise ValueError unless the frames are as `preprocessing` makes them."""
        per_unit = self.identity.geometry.frames_per_unit
        shape, dtype = tuple(frames.shape), str(frames.dtype).removeprefix("torch.")
        units = shape[1:2] == (per_unit,) and len(shape) == 5 if per_unit > 1 else len(shape) == 4
        if dtype != "uint8" or not units or shape[-1] != 3 or not shape[0]:
            raise ValueError(
                f"frames are {dtype} of shape {shape}; expected uint8 units of {per_unit} frames (H, W, 3)"
            )

    def load(self) -> None:
        """Build the model unless that is done; `encode` does so by itself.

        Raises:
            CheckpointError: the weights are no longer those of `identity`.
        """
        from featstore.torch.forked import about_to_compute

        about_to_compute(self.device)
        with self._loading, self._out_of_memory("loading the vision tower"):
            if self._model is None:
                self._model = self.build(self.weights.load(self.device, self.dtype))

    def after_fork(self) -> None:
        """Let go of a lock that a thread of the parent may hold."""
        self._loading = threading.Lock()

    def encode(self, frames: NDArray[np.uint8], **options: Any) -> torch.Tensor:
        """Return the features of `frames`, all encoded at once, whatever autocast or TF32 the caller has set in torch.

        Args:
            frames: uint8, prepared; as featstore.encoders.Encoder says.
            options: further ones of `compute`.

        Returns:
            (B, tokens, row_width) on `device` in `dtype`.

        Raises:
            ValueError: the frames have another shape or dtype.
            FeatstoreError: the GPU's memory does not hold them.
        """
        import torch

        self.check(frames)
        self.load()
        # Frames may be in read-only shared memory, which torch cannot wrap; page-locked memory uploads five times
        # faster.
        on_cuda = self.device.type == "cuda"
        staged = torch.empty(frames.shape, dtype=torch.uint8, device="cpu", pin_memory=on_cuda)
        staged.numpy()[...] = frames
        return self.encode_on_device(staged.to(self.device, non_blocking=True), **options)

    def encode_on_device(self, frames: torch.Tensor, **options: Any) -> torch.Tensor:
        """Return what `encode` returns, of frames that are on `device` already; on CUDA queued, not waited for."""
        import torch

        from featstore.torch.arithmetic import own_arithmetic
        from featstore.torch.forked import computing

        self.check(frames)
        self.load()
        count = frames.shape[0] * self.identity.geometry.frames_per_unit
        with (
            torch.inference_mode(),
            self._out_of_memory(f"encoding {count} frames"),
            computing(self.device),
            own_arithmetic(self.device),
        ):
            return self.compute(self._model, frames, **options)

    @contextmanager
    def _out_of_memory(self, doing: str) -> Iterator[None]:
        import torch

        try:
            yield
        except torch.cuda.OutOfMemoryError as exc:
            raise FeatstoreError(
                f"{self.device} ran out of memory {doing} in {self.dtype_name} ({exc}); "
                f"ingest with a smaller --batch-frames than {self.batch_frames}, or take another GPU with --device, in "
                "Python device="
            ) from exc


def _device(name: str | torch.device) -> torch.device:
    import torch

    from featstore.torch.upload.cudart import refuse_missing

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
