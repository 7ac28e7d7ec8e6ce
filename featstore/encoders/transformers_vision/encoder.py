"""A frozen vision model of transformers as an encoder: tokens of one or several layers, or what is pooled of them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from featstore import defaults
from featstore.checkpoints.digest import DigestedWeights
from featstore.encoders.torch_encoder import TorchEncoder
from featstore.encoders.transformers_vision.families import find_vision_tensors
from featstore.encoders.transformers_vision.output import read_output
from featstore.errors import CheckpointError
from featstore.spec import EncoderIdentity

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class TransformersEncoder(TorchEncoder):
    """The vision model of a checkpoint; see featstore.encoders.Encoder.

    Attributes:
        output: what is taken of the model.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        *,
        layer: str | int = defaults.LAYER,
        pool: str = defaults.POOL,
        clip: int | None = None,
        stride: int | None = None,
        device: str | torch.device = defaults.DEVICE,
        dtype: str | None = None,
        batch_frames: int | None = None,
    ) -> None:
        """Read the configs of `checkpoint` and hash the vision weights; the model is built by `load`.

        Args:
            checkpoint: a folder, or a name on the Hub.
            layer: -1 is the model's last hidden state, after its final norm if it has one; any other number is an
                index into the hidden states, of which 0 comes before the first layer, and which are not normed.
                Several, as `-4,-1`, are planes of a row.
            pool: `patch` keeps the patches' tokens, `cls` the class token, `mean` the patches' mean; `pooler` is the
                model's own pooled output, `joint` its projection into the space shared with texts.
            clip: frames of a clip, for models of clips; by default as many as the config says.
            stride: frames from the first of a clip to the first of the next; by default clips do not overlap.
            device: as for TorchEncoder, and so are `dtype` and `batch_frames`.
            dtype: fp16, bf16 or fp32.
            batch_frames: number of frames to encode at once.

        Raises:
            CheckpointError: the checkpoint is of no known family, is incomplete, or needs what featstore does not do.
            ValueError: an option is invalid, or the model has no such layer or pooled output.
        """
        super().__init__(str(checkpoint), device=device, dtype=dtype, batch_frames=batch_frames)
        self.output = output = read_output(
            checkpoint, layer=layer, pool=pool, clip=clip, stride=stride
        )
        self.preprocessing = output.processor.preprocessing
        self.names = {"model": output.model}
        self.weights = DigestedWeights(find_vision_tensors(output.found, pool=pool))
        self.identity = EncoderIdentity(
            family="transformers",
            weights=self.weights.digest,
            dtype=self.dtype_name,
            geometry=output.geometry,
            settings=output.settings(),
        )
        self._pixels = torch.empty(0)

    def build(self, weights: dict[str, torch.Tensor]) -> Any:
        """Return the model with these weights, by the names that `find_vision_tensors` gives them.

        Raises:
            CheckpointError: they are not those of a model of this config.
        """
        import transformers

        table = torch.from_numpy(self.output.processor.table())  # a byte's value in each channel
        self._pixels = table.T.to(self.device, self.dtype, copy=True)  # (3, 256)
        family, pooled = self.output.found.family, self.output.pooled
        try:
            # What is missing is drawn; then it is refused, unless no feature depends on it.
            with torch.random.fork_rng(devices=[]), _silent():
                model, report = getattr(transformers, self.output.model).from_pretrained(
                    None,
                    config=self.output.found.config,
                    state_dict={self.weights.tensors[name][1]: weights[name] for name in weights},
                    dtype=self.dtype,
                    ignore_mismatched_sizes=True,  # they are in the report
                    output_loading_info=True,
                    **({"add_pooling_layer": False} if family.pools and not pooled else {}),
                )
        except (RuntimeError, ValueError, KeyError) as exc:
            raise self._other_weights(f"{exc!s:.300}") from exc
        unneeded = ("predictor.", *([family.pooler] if family.pooler and not pooled else []))
        missing = [
            name
            for name in report["missing_keys"]
            if not name.removeprefix("vision_model.").startswith(unneeded)
        ]
        for what, names in (
            ("lack", missing),
            ("have, and no model of it would,", report["unexpected_keys"]),
            ("have in another shape", report["mismatched_keys"]),
        ):
            if names:
                first = min(map(str, names))
                raise self._other_weights(f"they {what} {len(names)} tensors, as {first:.200}")
        return model.to(self.device).eval().requires_grad_(False)

    def compute(self, model: Any, frames: torch.Tensor) -> torch.Tensor:
        """Return features (B, tokens, planes * D) of (B, H, W, 3) uint8, or (B, clip, H, W, 3)."""
        size = self.preprocessing.max_frame
        if tuple(frames.shape[-3:-1]) != size:
            raise ValueError(
                f"frames are of {tuple(frames.shape[-3:-1])} pixels; expected {size}, as "
                "featstore.preprocessing.prepare_frame makes them"
            )
        if self.output.found.family.frames and frames.dim() == 4:
            frames = frames[:, None]  # clips of one frame
        channels = [self._pixels[c][frames[..., c].int()] for c in range(3)]
        pixels = torch.stack(channels, dim=-3)  # (..., H, W, 3) -> (..., 3, H, W)
        out = model(
            **{model.main_input_name: pixels},
            output_hidden_states=self.output.layers != (-1,),
            **({"skip_predictor": True} if self.output.model == "VJEPA2Model" else {}),
        )
        return torch.cat([self._take(out, layer) for layer in self.output.layers], dim=-1)

    def _take(self, out: Any, layer: int) -> torch.Tensor:
        if self.output.pooled:
            pooled: torch.Tensor = out.image_embeds if self.output.projects else out.pooler_output
            return pooled[:, None]
        hidden: torch.Tensor = out.last_hidden_state if layer == -1 else out.hidden_states[layer]
        if self.output.pool == "cls":
            return hidden[:, :1]
        patches = hidden[:, self.output.first_patch :]
        return patches.mean(dim=1, keepdim=True) if self.output.pool == "mean" else patches

    def _other_weights(self, why: str) -> CheckpointError:
        return CheckpointError(
            f"the weights in {self.output.found.files} are not those of a {self.output.model} of its config: {why}; is "
            "the download complete, and do config and weights belong together?"
        )


@contextmanager
def _silent() -> Iterator[None]:
    """Keep transformers from printing a bar, and a report of what was left out on purpose."""
    from transformers.utils import logging

    library: Any = logging
    shown, level = library.is_progress_bar_enabled(), library.get_verbosity()
    library.disable_progress_bar()
    library.set_verbosity_error()
    try:
        yield
    finally:
        library.set_verbosity(level)
        if shown:
            library.enable_progress_bar()
