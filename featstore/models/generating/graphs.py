"""One-token steps of a Qwen2 on a GPU: all of a layer but its attention is launched at once, as two CUDA graphs.

A token of a 7B model is 1,365 kernels, which take 6 ms to run and 28 to launch one by one. The graphs hold the same
kernels as transformers' own forward, in the same order, so that the answers stay the same: the first step of each layer
is computed both ways, and unless all bits agree no graph is used. Attention depends on how long the prompt has become,
and is launched as ever; it is left out of the comparison, for cuDNN's gives other last bits each time.
"""

from __future__ import annotations

import gc
import logging
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache, Qwen2ForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, apply_rotary_pos_emb

from featstore.models.generating.prefix import CACHE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_log = logging.getLogger(__name__)
_NEAR = 0.03  # of what attention gives twice, in bf16


class StepGraphs:
    """The graphs of one model; used by one thread at a time."""

    def __init__(self, model: Any) -> None:
        """Take a model; one that is not known here, or not on a GPU, is left as it is."""
        self._model = model.model
        self._layers = list(model.model.layers) if _serves(model) else []
        self._weights = [weight for layer in self._layers for weight in layer.parameters()]
        self._failed = False
        self.clear()

    def clear(self) -> None:
        """Let go of all graphs and their memory."""
        self._graphs: dict[int, tuple[Callable[[], Any], Callable[[], Any]]] = {}
        self._inputs: Any = None  # the _Inputs of the graphs
        self._conditions: Any = None

    def make(self) -> None:
        """Make the graphs now, and not in the first answer: meanwhile no other thread may wait for the whole GPU."""
        if self._layers:
            weight = self._weights[0]
            hidden = torch.linspace(-1, 1, weight.shape[-1], device=weight.device)
            with torch.inference_mode(), self.used():
                embeds = hidden.to(weight.dtype)[None, None]
                self._model(inputs_embeds=embeds, use_cache=True, **{CACHE: DynamicCache()})

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let the model's layers take their one-token steps in graphs inside the block."""
        if not self._failed and self._conditions != (now := self._current_conditions()):
            self.clear()
            self._conditions = now
        try:
            for number, layer in enumerate(self._layers):
                vars(layer)["forward"] = partial(self._forward, number)
            yield
        finally:
            for layer in self._layers:
                vars(layer).pop("forward", None)

    def _current_conditions(self) -> Any:
        """Return what the kernels were chosen by and read from."""
        settings = torch.backends.cuda.matmul
        return (
            settings.allow_fp16_reduced_precision_reduction,
            settings.allow_bf16_reduced_precision_reduction,
            torch.are_deterministic_algorithms_enabled(),
            [weight.data_ptr() for weight in self._weights],
        )

    def _forward(self, number: int, *args: Any, **given: Any) -> Any:
        """Compute a layer in place of its `forward`."""
        layer = self._layers[number]
        if not self._is_step(args, given):
            return type(layer).forward(layer, *args, **given)
        if number in self._graphs:
            before, after = self._graphs[number]
            self._inputs.set(args[0], given["position_embeddings"])
            query, *new = before()
            keys, values = given[CACHE].update(*new, layer.self_attn.layer_idx)
            self._attend(layer, query, keys, values, given)
            return after()
        hidden, attended = args[0].clone(), []
        watch = layer.self_attn.o_proj.register_forward_pre_hook(
            lambda _, inputs: attended.append(inputs[0].clone())
        )
        try:
            result = type(layer).forward(layer, *args, **given)
        finally:
            watch.remove()
        try:
            self._make(number, hidden, attended[0], result, given)
        except Exception as exc:  # no memory, say, or a thread that waits for the whole GPU
            self._give_up(str(exc))
        return result

    def _is_step(self, args: tuple[Any, ...], given: dict[str, Any]) -> bool:
        return (
            not self._failed
            and len(args) == 1
            and args[0].shape[:2] == (1, 1)
            and given.get("attention_mask") is None
            and type(given.get(CACHE)) is DynamicCache
            and not torch.is_autocast_enabled("cuda")
            and torch.is_inference_mode_enabled()
        )

    def _attend(
        self, layer: Any, query: Any, keys: Any, values: Any, given: dict[str, Any]
    ) -> None:
        """Attend as the layer itself would."""
        scaling = layer.self_attn.scaling
        taken = ("attention_mask", "position_embeddings", CACHE)
        more = {name: value for name, value in given.items() if name not in taken}
        result, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](
            layer.self_attn, query, keys, values, None, dropout=0.0, scaling=scaling, **more
        )
        self._inputs.attended.copy_(result.reshape(1, 1, -1))

    def _make(
        self, number: int, hidden: Any, attended: Any, result: Any, given: dict[str, Any]
    ) -> None:
        """Make the graphs of a layer that has just computed `attended` and `result`, and compare."""
        layer, rotary = self._layers[number], given["position_embeddings"]
        inputs = self._inputs = self._inputs or _Inputs(layer, hidden, rotary)
        inputs.set(hidden, rotary)
        before = inputs.record(partial(_before, layer, inputs))
        after = inputs.record(partial(_after, layer, inputs))
        inputs.set(hidden, rotary)
        query, key, value = before()
        held = given[CACHE].layers[layer.self_attn.layer_idx]
        self._attend(layer, query, held.keys, held.values, given)
        error = (inputs.attended - attended).abs().max() / attended.abs().max()
        inputs.attended.copy_(attended)
        pairs = (key, held.keys[..., -1:, :]), (value, held.values[..., -1:, :]), (after(), result)
        if error < _NEAR and all(torch.equal(ours, theirs) for ours, theirs in pairs):
            self._graphs[number] = before, after
        else:
            self._give_up(f"layer {number} computes other bits in a graph")

    def _give_up(self, why: str) -> None:
        _log.info("tokens are computed without CUDA graphs: %s", why)
        self.clear()
        self._failed = True


class _Inputs:
    """The tensors that all graphs of a model read, and the memory they share: they run in the order of their making."""

    def __init__(self, layer: Any, hidden: Any, rotary: Any) -> None:
        self.hidden = torch.empty_like(hidden)
        self.rotary = tuple(map(torch.empty_like, rotary))
        self.attended = hidden.new_empty((1, 1, layer.self_attn.o_proj.in_features))
        self._rotary_set: Any = None
        self._stream: Any = None

    def set(self, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Take a layer's inputs, but for those that are there: all layers share the rotary embeddings of a step."""
        if hidden is not self.hidden:
            self.hidden.copy_(hidden)
        if rotary is not self._rotary_set:
            self._rotary_set = rotary
            for held, given in zip(self.rotary, rotary, strict=True):
                held.copy_(given)

    def record(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """Return what computes `run` anew, and returns the tensors that hold the results, each time the same."""
        device = self.hidden.device
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()
        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
        collects = gc.isenabled()
        self._stream.wait_stream(here)
        # By hand: `with torch.cuda.graph` collects all garbage each time, which takes longer than all else here.
        with torch.cuda.stream(self._stream):
            run()  # libraries get their workspaces outside the graph
            try:
                gc.disable()  # what it would free may be CUDA's, which ends the capture
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    results = run()
                finally:
                    graph.capture_end()
            finally:
                if collects:
                    gc.enable()
        here.wait_stream(self._stream)

        def replay() -> Any:
            graph.replay()
            return results

        return replay


def _before(layer: Any, inputs: _Inputs) -> tuple[torch.Tensor, ...]:
    attention, hidden = layer.self_attn, layer.input_layernorm(inputs.hidden)
    query, key, value = (
        project(hidden).view(1, 1, -1, attention.head_dim).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    return *apply_rotary_pos_emb(query, key, *inputs.rotary), value


def _after(layer: Any, inputs: _Inputs) -> torch.Tensor:
    hidden = inputs.hidden + layer.self_attn.o_proj(inputs.attended)
    wide = layer.mlp(layer.post_attention_layernorm(hidden))
    return torch.add(hidden, wide, out=inputs.hidden)  # the next layer's input


def _serves(model: Any) -> bool:
    return (
        model.device.type == "cuda"
        and model.dtype in (torch.float16, torch.bfloat16)
        and type(model) is Qwen2ForCausalLM
        and model.config._attn_implementation == "sdpa"
        and all(type(layer) is Qwen2DecoderLayer for layer in model.model.layers)
        and all(layer.self_attn.sliding_window is None for layer in model.model.layers)
    )
