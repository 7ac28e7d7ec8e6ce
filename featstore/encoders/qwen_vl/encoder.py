"""Qwen2.5-VL's and Qwen3-VL's vision side as an encoder: pairs of frames in, what goes into the prompt out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featstore import defaults
from featstore.encoders.torch_encoder import TorchEncoder
from featstore.encoders.video_checkpoint import read_video_checkpoint
from featstore.errors import CheckpointError
from featstore.geometry import Geometry
from featstore.preprocessing import VideoPixelBudget
from featstore.resizing import torchvision_name
from featstore.spec import EncoderIdentity

if TYPE_CHECKING:
    import torch

    from featstore.checkpoints.config_fields import ConfigFields
    from featstore.preprocessing import Preprocessing

# model_type -> what transformers takes for a field that the vision config does not have.
_BOTH = {"in_channels": 3, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_heads": 16}
MODELS: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {
        **_BOTH,
        "depth": 32,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "hidden_act": "silu",
        "hidden_size": 3584,
        "intermediate_size": 3420,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "window_size": 112,
    },
    "qwen3_vl": {
        **_BOTH,
        "deepstack_visual_indexes": [8, 16, 24],
        "depth": 27,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_position_embeddings": 2304,
        "out_hidden_size": 3584,
        "patch_size": 16,
    },
}
_HALVES = (
    (0.5, 0.5, 0.5),
    (0.5, 0.5, 0.5),
)  # Qwen3-VL's mean and std, unless its processor says so
_TIMING = "vision.tokens_per_second"  # places a video's tokens in time, in the prompt: no feature depends on it
# qwen-vl-utils' limits, in cells of a token: of a frame, and of a video's grid steps.
MIN_CELLS, MAX_CELLS, TOTAL_CELLS = 128, 768, 128_000 * 9 // 10
NAMES = {"model.visual.": "", "visual.": ""}  # in checkpoints of several ages, and in the tower


class QwenVLEncoder(TorchEncoder):
    """The vision tower of a Qwen2.5-VL or Qwen3-VL checkpoint; frames are resized within qwen-vl-utils' limits.

    Attributes:
        checkpoint: its configs, as they were read.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        device: str | torch.device = defaults.DEVICE,
        dtype: str | None = None,
        batch_frames: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        total_pixels: int | None = None,
    ) -> None:
        """Read the configs of `checkpoint` and hash the vision weights; the model is built by `load`.

        Args:
            checkpoint: a folder, or a name on the Hub.
            device: a torch device; `auto` is CUDA if there is a GPU, else the CPU.
            dtype: fp16, bf16 or fp32; by default bf16 on CUDA and fp32 elsewhere.
            batch_frames: number of frames to encode at once; by default 128 on CUDA, 16 elsewhere.
            min_pixels: pixels of a frame at least; by default 128 cells of a token, as qwen-vl-utils.
            max_pixels: pixels of a frame at most; by default 768 cells.
            total_pixels: pixels of a video at most, each pair of frames counted once; by default 115,200 cells.

        Raises:
            CheckpointError: the checkpoint is another model's, is incomplete, or needs what featstore does not do.
            ValueError: a device, dtype or number is invalid.
        """
        limits = {
            "min_pixels": min_pixels,
            "max_pixels": max_pixels,
            "total_pixels": total_pixels,
        }
        for name, pixels in limits.items():
            if pixels is not None and pixels < 1:
                raise ValueError(
                    f"{name} is {pixels}; it must be at least 1, or None for the default"
                )
        super().__init__(checkpoint, device=device, dtype=dtype, batch_frames=batch_frames)
        self.checkpoint = found = read_video_checkpoint(checkpoint, tuple(MODELS))
        known = MODELS[found.model_type]
        fields = type(found.vision)({**known, **found.vision.values}, found.vision.origin)
        patch, merge, pair = (
            _agreed(fields, found.processor, mine, theirs)
            for mine, theirs in (
                ("patch_size", "patch_size"),
                ("spatial_merge_size", "merge_size"),
                ("temporal_patch_size", "temporal_patch_size"),
            )
        )
        self._patch, self._merge = patch, merge
        cell = patch * merge
        self._budget = VideoPixelBudget(
            multiple=cell,
            min_pixels=min_pixels or MIN_CELLS * cell**2,
            max_pixels=max_pixels or MAX_CELLS * cell**2,
            total_pixels=total_pixels or TOTAL_CELLS * cell**2,
            frames_per_unit=pair,
            resample=torchvision_name(3, "floats"),  # as qwen-vl-utils, whatever the processor says
            **found.pixel_options(*(_HALVES if found.model_type == "qwen3_vl" else ())),
        )
        self.preprocessing: Preprocessing = self._budget
        levels = len(fields.get("deepstack_visual_indexes") or ())
        self.weights = found.weights(NAMES)
        settings = found.settings(known)
        settings.pop(_TIMING, None)
        self.identity = EncoderIdentity(
            family="qwen_vl",
            weights=self.weights.digest,
            dtype=self.dtype_name,
            geometry=Geometry(
                tokens_per_unit=self._budget.max_pixels // cell**2,
                hidden_dim=fields.integer("out_hidden_size", 1, 1 << 20),
                frames_per_unit=pair,
                stride=pair,
                planes=1 + levels,
                by_video=True,
            ),
            settings={"model": found.model_type, **settings},
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of the tokens of a unit of prepared frames of that size."""
        return height // self._budget.multiple, width // self._budget.multiple

    def build(self, weights: dict[str, torch.Tensor]) -> Any:
        """Return the tower with these weights."""
        from featstore.encoders.pixels import pixel_table
        from featstore.encoders.qwen_vl.modeling import build_tower

        self._table = pixel_table(self._budget).to(self.device)  # (256, 3)
        return build_tower(self.checkpoint, weights, self.device)

    def compute(self, model: Any, frames: torch.Tensor) -> torch.Tensor:
        """Return the features of units of frames (B, 2, H, W, 3)."""
        from featstore.encoders.qwen_vl.modeling import patches, rows

        pixels = patches(frames, self._table, self._patch, self._merge)
        return rows(model, pixels.to(self.dtype), frames.shape[0], frames.shape[2:4], self._patch)


def _agreed(vision: ConfigFields, processor: ConfigFields, mine: str, theirs: str) -> int:
    """Return a number of the vision config, which the processor must have too if it has any."""
    value = vision.integer(mine, 1, 1 << 10)
    if processor.get(theirs) not in (None, value):
        raise CheckpointError(
            f"{processor.origin} has {theirs} = {processor.get(theirs)!r:.40}, and {vision.origin} {mine} = {value}; "
            "use both as the model's authors published them"
        )
    return value
