"""One-token steps of a Qwen2 on a GPU: all of a layer but its attention is launched at once, as two CUDA graphs.

A token of a 7B model is 1,365 kernels, which take 6 ms to run and 28 to launch one by one. The graphs hold the same
kernels as transformers' own forward, in the same order, so that the answers stay the same: the first step of each layer
is computed both ways, and unless all bits agree no graph is used. Attention depends on how long the prompt has become,
and is launched as ever.
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


class StepGraphs:
    """The graphs of one model, made as it computes its first one-token step; used by one thread at a time."""

    def __init__(self, model: Any) -> None:
        """Take a model; one that is not known here, or not on a GPU, is left as it is."""
        self._model = model.model
        self._layers = list(model.model.layers) if _serves(model) else []
        self._weights = [weight for layer in self._layers for weight in layer.parameters()]
        self._attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
        self._failed = False
        self.clear()

    def clear(self) -> None:
        """Let go of all graphs and their memory."""
        self._graphs: dict[int, _LayerGraphs] = {}
        self._inputs: _Inputs | None = None
        self._recorder: _Recorder | None = None
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
        (hidden,) = args
        graphs = self._graphs.get(number)
        if graphs is not None:
            return self._replay(graphs, hidden, given)
        result = type(layer).forward(layer, hidden, **given)
        try:
            self._make(number, hidden, result, given)
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

    def _replay(self, graphs: _LayerGraphs, hidden: torch.Tensor, given: dict[str, Any]) -> Any:
        assert self._inputs is not None
        self._inputs.set(hidden, given["position_embeddings"])
        query, key, value = graphs.before()
        attention = graphs.layer.self_attn
        keys, values = given[CACHE].update(key, value, attention.layer_idx)
        self._attention(graphs.layer, query, keys, values, given)
        return graphs.after()

    def _attention(
        self,
        layer: Any,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        given: dict[str, Any],
    ) -> None:
        """Attend as the layer itself would."""
        assert self._inputs is not None
        attention = layer.self_attn
        more = {k: v for k, v in given.items() if k not in _TAKEN}
        result, _ = self._attend(
            attention, query, keys, values, None, dropout=0.0, scaling=attention.scaling,
            sliding_window=None, **more,
        )  # fmt: skip
        self._inputs.attended.copy_(result.reshape(1, 1, -1))

    def _make(
        self, number: int, hidden: torch.Tensor, result: torch.Tensor, given: dict[str, Any]
    ) -> None:
        """Make the graphs of a layer that has just computed `result`, and compare."""
        layer, rotary = self._layers[number], given["position_embeddings"]
        if self._inputs is None or self._recorder is None:
            self._inputs = _Inputs(layer, hidden, rotary)
            self._recorder = _Recorder(hidden.device)
        inputs, hidden = self._inputs, hidden.clone()
        inputs.set(hidden, rotary)
        graphs = _LayerGraphs(layer, inputs, self._recorder)
        inputs.set(hidden, rotary)
        query, key, value = graphs.before()
        held = given[CACHE].layers[layer.self_attn.layer_idx]
        same = torch.equal(key, held.keys[..., -1:, :])
        same &= torch.equal(value, held.values[..., -1:, :])
        self._attention(layer, query, held.keys, held.values, given)
        if not (same and torch.equal(graphs.after(), result)):
            self._give_up(f"layer {number} computes other bits in a graph")
            return
        self._graphs[number] = graphs

    def _give_up(self, why: str) -> None:
        _log.info("tokens are computed without CUDA graphs: %s", why)
        self.clear()
        self._failed = True


class _Inputs:
    """The tensors that all graphs of a model read from."""

    def __init__(
        self, layer: Any, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        self.hidden = torch.empty_like(hidden)
        self.rotary = tuple(map(torch.empty_like, rotary))
        self.attended = hidden.new_empty((1, 1, layer.self_attn.o_proj.in_features))
        self._rotary_set: Any = None

    def set(self, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Take a layer's inputs, but for those that are there: all layers share the rotary embeddings of a step."""
        if hidden is not self.hidden:
            self.hidden.copy_(hidden)
        if rotary is not self._rotary_set:
            self._rotary_set = rotary
            for held, given in zip(self.rotary, rotary, strict=True):
                held.copy_(given)


class _LayerGraphs:
    """What a layer computes before and after its attention; both return the same tensors each time."""

    def __init__(self, layer: Any, inputs: _Inputs, recorder: _Recorder) -> None:
        self.layer = layer
        self.before = recorder.record(partial(_before, layer, inputs))
        self.after = recorder.record(partial(_after, layer, inputs))


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


class _Recorder:
    """Makes graphs that share their memory: they run one after another, in the order in which they are made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """Return what computes `run` anew, and returns the tensors that hold the results, each time the same."""
        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        self._stream.wait_stream(here)
        # By hand: `with torch.cuda.graph` collects all garbage each time, which takes longer than all else here.
        collects = gc.isenabled()
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


_TAKEN = frozenset({"attention_mask", "position_embeddings", CACHE})


def _serves(model: Any) -> bool:
    config = model.config
    return (
        model.device.type == "cuda"
        and model.dtype in (torch.float16, torch.bfloat16)
        and type(model) is Qwen2ForCausalLM
        and config._attn_implementation == "sdpa"
        and all(type(layer) is Qwen2DecoderLayer for layer in model.model.layers)
        and all(layer.self_attn.sliding_window is None for layer in model.model.layers)
    )
