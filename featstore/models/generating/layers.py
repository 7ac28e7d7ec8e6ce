"""The layers of a Qwen2 on a GPU, computed faster than by transformers and to the same bits.

A prompt's memory-bound steps are fused, and a token's are launched in CUDA graphs. Both are compared with the layers'
own operations before they are used, and are not if a bit differs. What is not known here is left to the layers.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache, Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from featstore.models.generating.graphs import StepGraphs
from featstore.models.generating.halves import FusedHalves, Halves, attend
from featstore.models.generating.prefix import CACHE
from featstore.torch.kernels.dequantize import fused_passes

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = logging.getLogger(__name__)
_ROWS = 64  # of the comparison


class FastLayers:
    """The layers of one model; used by one thread at a time."""

    def __init__(self, model: Any) -> None:
        """Take a model; one that is not known here, or not on a GPU, is left as it is."""
        self._model = model.model
        self._layers = list(model.model.layers) if _serves(model) else []
        self._steps = StepGraphs(self._layers)
        self._halves: FusedHalves | None = None

    def make(self) -> None:
        """Make and compare all that the first answer needs; until then no other thread may wait for the whole GPU."""
        if not self._layers:
            return
        weight = next(self._layers[0].parameters())
        generator = torch.Generator(weight.device).manual_seed(0)
        shape = (1, _ROWS, weight.shape[-1])
        embeds = torch.randn(shape, generator=generator, device=weight.device).to(weight.dtype)
        with torch.inference_mode(), self.used():
            try:
                self._halves = self._fuse(embeds, generator)
            except Exception as exc:  # no memory, say, or no compiler for Triton
                _log.info("prompts are computed without fused kernels: %s", exc)
            self._model(inputs_embeds=embeds[:, :1], use_cache=True, **{CACHE: DynamicCache()})

    def clear(self) -> None:
        """Let go of what is kept for the next answer."""
        self._steps.clear()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let the model compute its layers so inside the block, unless somebody watches or changes what is in them."""
        if any(map(_is_changed, self._layers)):
            yield
            return
        self._steps.check()
        try:
            for number, layer in enumerate(self._layers):
                vars(layer)["forward"] = partial(self._forward, number)
            with torch.cuda.device_of(self._model.norm.weight):  # type: ignore[no-untyped-call]
                yield
        finally:
            for layer in self._layers:
                vars(layer).pop("forward", None)

    def _fuse(self, embeds: torch.Tensor, generator: torch.Generator) -> FusedHalves | None:
        """Return fused halves if they give the layers' own bits."""
        if fused_passes() is None:
            return None
        from featstore.torch.kernels import language

        plain, fused = Halves(), FusedHalves(language)
        rotary = self._model.rotary_emb(embeds, torch.arange(_ROWS, device=embeds.device)[None])
        for layer in self._layers:
            attended = embeds.new_empty((1, _ROWS, layer.self_attn.o_proj.in_features))
            attended.normal_(generator=generator)
            expected = plain.before(layer, embeds, rotary), plain.after(layer, embeds, attended)
            found = fused.before(layer, embeds, rotary), fused.after(layer, embeds, attended)
            pairs = [*zip(expected[0], found[0], strict=True), (expected[1], found[1])]
            if not all(torch.equal(*pair) for pair in pairs):
                raise ValueError("other bits than the layers' own")
        return fused

    def _forward(self, number: int, *args: Any, **given: Any) -> Any:
        """Compute a layer in place of its `forward`."""
        layer = self._layers[number]
        if _knows(args, given):
            (hidden,) = args
            if hidden.shape[1] == 1 and given.get("attention_mask") is None:
                return self._steps.forward(number, hidden, given)
            if self._halves is not None:
                query, *new = self._halves.before(layer, hidden, given["position_embeddings"])
                keys, values = given[CACHE].update(*new, layer.self_attn.layer_idx)
                return self._halves.after(layer, hidden, attend(layer, query, keys, values, given))
        return type(layer).forward(layer, *args, **given)


def _is_changed(layer: Any) -> bool:
    """Return whether a part of a layer has a hook, or a forward of its own: neither would be called."""
    return any(
        part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part)
        for part in layer.modules()
    )


def _knows(args: tuple[Any, ...], given: dict[str, Any]) -> bool:
    return (
        len(args) == 1
        and len(args[0]) == 1
        and type(given.get(CACHE)) is DynamicCache
        and not torch.is_autocast_enabled("cuda")
        and torch.is_inference_mode_enabled()
    )


def _serves(model: Any) -> bool:
    return (
        model.device.type == "cuda"
        and model.dtype in (torch.float16, torch.bfloat16)
        and type(model) is Qwen2ForCausalLM
        and model.config._attn_implementation == "sdpa"
        and model.config.hidden_act == "silu"
        and all(type(layer) is Qwen2DecoderLayer for layer in model.model.layers)
        and all(layer.self_attn.sliding_window is None for layer in model.model.layers)
    )
