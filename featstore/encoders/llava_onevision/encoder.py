"""LLaVA-OneVision's vision side as an encoder, of checkpoints in transformers' layout: frames in, pooled tokens out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from featstore import defaults
from featstore.encoders.torch_encoder import TorchEncoder
from featstore.encoders.video_checkpoint import read_video_checkpoint
from featstore.geometry import Geometry
from featstore.preprocessing import ExactResize
from featstore.resizing import torchvision_name
from featstore.spec import EncoderIdentity

if TYPE_CHECKING:
    import torch

    from featstore.preprocessing import Preprocessing

MODEL_TYPE = "llava_onevision"
_SIGLIP = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "num_channels": 3}
_OURS = {"vision_tower.vision_model.": "vision_tower."}
_OURS |= {name: name for name in ("vision_tower.", "multi_modal_projector.", "image_newline")}
# Beginnings of names, in checkpoints of several ages -> in the model.
NAMES = {start + name: ours for start in ("model.", "") for name, ours in _OURS.items()}


class LlavaOnevisionEncoder(TorchEncoder):
    """The SigLIP tower and projector of a LLaVA-OneVision checkpoint, as `llava-hf` publishes them.

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
    ) -> None:
        """Read the configs of `checkpoint` and hash the vision weights; the model is built by `load`.

        Args:
            checkpoint: a folder, or a name on the Hub.
            device: as for TorchEncoder, and so are `dtype` and `batch_frames`.
            dtype: fp16, bf16 or fp32.
            batch_frames: number of frames to encode at once.

        Raises:
            CheckpointError: the checkpoint is another model's, is incomplete, or needs what featstore does not do.
            ValueError: a device, dtype or number is invalid.
        """
        super().__init__(checkpoint, device=device, dtype=dtype, batch_frames=batch_frames)
        self.checkpoint = found = read_video_checkpoint(checkpoint, (MODEL_TYPE,))
        vision, config = found.vision, found.config
        vision.text("model_type", choices=("siglip_vision_model",))
        image = vision.integer("image_size", 1, 1 << 13)
        side = -(-(image // vision.integer("patch_size", 1, 1 << 10)) // 2)
        size = found.processor.get("size")
        if not isinstance(size, dict) or (size.get("height"), size.get("width")) != (image, image):
            raise found.processor.wrong(
                "size", f"height and width = {image}, the tower's image_size"
            )
        crop = found.processor.get("crop_size") or {}
        if found.processor.get("do_center_crop") and crop != {"height": image, "width": image}:
            raise found.processor.wrong("do_center_crop", "false: frames are not cropped here")
        self._resize = ExactResize(
            height=image,
            width=image,
            resample=torchvision_name(found.processor.integer("resample", 2, 3, 3), "bytes"),
            **found.pixel_options(),
        )
        self.preprocessing: Preprocessing = self._resize
        text = config.get("text_config")
        dim = type(config)(
            text if isinstance(text, dict) else {}, f"text_config of {config.origin}"
        )
        self.weights = found.weights(NAMES)
        self.identity = EncoderIdentity(
            family="llava_onevision",
            weights=self.weights.digest,
            dtype=self.dtype_name,
            geometry=Geometry(
                tokens_per_unit=side**2,
                hidden_dim=dim.integer("hidden_size", 1, 1 << 20),
                grid=(side, side),
                extra_rows=1,
            ),
            settings={
                **found.settings(_SIGLIP),
                "layer": json.dumps(config.values.get("vision_feature_layer", -1)),
                "select": config.text("vision_feature_select_strategy", "full", ("full",)),
                "projector": config.text("projector_hidden_act", "gelu"),
                "projector.bias": bool(config.values.get("multimodal_projector_bias", True)),
            },
        )

    def build(self, weights: dict[str, torch.Tensor]) -> Any:
        """Return the tower and projector with these weights."""
        from featstore.encoders.llava_onevision.modeling import build_model
        from featstore.encoders.pixels import pixel_table

        self._table = pixel_table(self._resize).to(self.device)  # (256, 3)
        return build_model(self.checkpoint, weights, self.device)

    def extra_rows(self) -> torch.Tensor:
        """Return the newline token (1, D), which ends every video."""
        self.load()
        newline: torch.Tensor = self._model.image_newline
        return newline[None].clone()

    def compute(self, model: Any, frames: torch.Tensor) -> torch.Tensor:
        """Return the features (B, tokens, D) of frames (B, H, W, 3)."""
        from featstore.encoders.llava_onevision.modeling import pooled
        from featstore.encoders.pixels import normalize

        return pooled(model, normalize(frames, self._table).to(self.dtype))
