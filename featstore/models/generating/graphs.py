"""One-token steps on a GPU: all of a layer but its attention is launched at once, as two CUDA graphs.

A token of a 7B model is 1,365 kernels, which take 6 ms to run and 28 to launch one by one. The graphs hold the same
kernels as transformers' own forward, in the same order, so that the answers stay the same: the first step of each layer
is computed both ways, and unless all bits agree no graph is used. Attention depends on how long the prompt has become,
and is launched as ever; it is left out of the comparison, for with cuDNN's two answers of transformers alone differ in
the last bits of their logits (H100, torch 2.11), and with flash attention they do not.
"""

from __future__ import annotations

import gc
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from featstore.models.generating.halves import Halves, attend
from featstore.models.generating.prefix import CACHE

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)
_NEAR = 0.03  # of what attention gives twice, in bf16


class StepGraphs:
    """The graphs of a model's layers; used by one thread at a time, without gradients."""

    def __init__(self, layers: list[Any]) -> None:
        """Take the layers of a Qwen2."""
        self._layers = layers
        self._failed = False
        self.clear()

    def clear(self) -> None:
        """Let go of all graphs and their memory."""
        self._graphs: dict[int, tuple[Callable[[], Any], Callable[[], Any]]] = {}
        self._inputs: Any = None  # the _Inputs of the graphs
        self._conditions: Any = None

    def check(self) -> None:
        """Let go of graphs whose kernels were chosen by other settings, or read from other weights."""
        settings = torch.backends.cuda.matmul
        now = (
            settings.allow_fp16_reduced_precision_reduction,
            settings.allow_bf16_reduced_precision_reduction,
            torch.are_deterministic_algorithms_enabled(),
            [weight.data_ptr() for layer in self._layers for weight in layer.parameters()],
        )
        if self._conditions != now:
            self.clear()
            self._conditions = now

    def forward(self, number: int, hidden: torch.Tensor, given: dict[str, Any]) -> Any:
        """Return what a layer makes of `hidden` (1, 1, width), in a tensor that the next call overwrites.

        Args:
            number: the layer's.
            hidden: as its forward takes it.
            given: the other arguments of its forward.
        """
        layer = self._layers[number]
        if self._failed:
            return type(layer).forward(layer, hidden, **given)
        if number not in self._graphs:
            return self._first(number, hidden, given)
        before, after = self._graphs[number]
        self._inputs.set(hidden, given["position_embeddings"])
        query, *new = before()
        keys, values = given[CACHE].update(*new, layer.self_attn.layer_idx)
        self._inputs.attended.copy_(attend(layer, query, keys, values, given))
        return after()

    def _first(self, number: int, hidden: torch.Tensor, given: dict[str, Any]) -> Any:
        """Return what the layer itself makes of `hidden`, and make its graphs."""
        layer, hidden = self._layers[number], hidden.clone()
        attended: list[torch.Tensor] = []
        watch = layer.self_attn.o_proj.register_forward_pre_hook(
            lambda _, inputs: attended.append(inputs[0].clone())
        )
        try:
            result = type(layer).forward(layer, hidden, **given)
        finally:
            watch.remove()
        try:
            self._make(number, hidden, attended[0], result, given)
        except Exception as exc:  # no memory, say, or a thread that waits for the whole GPU
            _log.info("tokens are computed without CUDA graphs: %s", exc)
            self.clear()
            self._failed = True
        return result

    def _make(
        self, number: int, hidden: Any, attended: Any, result: Any, given: dict[str, Any]
    ) -> None:
        """Make the graphs of a layer that has just computed `attended` and `result`, and compare."""
        layer, rotary = self._layers[number], given["position_embeddings"]
        inputs = self._inputs = self._inputs or _Inputs(hidden, rotary, attended)
        halves, own = Halves(), inputs.hidden
        inputs.set(hidden, rotary)
        before = inputs.record(partial(halves.before, layer, own, inputs.rotary))
        after = inputs.record(partial(halves.after, layer, own, inputs.attended, out=own))
        inputs.set(hidden, rotary)
        query, key, value = before()
        held = given[CACHE].layers[layer.self_attn.layer_idx]
        error = attend(layer, query, held.keys, held.values, given) - attended
        inputs.attended.copy_(attended)
        pairs = (key, held.keys[..., -1:, :]), (value, held.values[..., -1:, :]), (after(), result)
        near = error.abs().max() <= _NEAR * attended.abs().max()
        if not near or not all(torch.equal(*pair) for pair in pairs):
            raise ValueError(f"layer {number} computes other bits in a graph")
        self._graphs[number] = before, after


class _Inputs:
    """The tensors that all graphs of a model read, and the memory they share: they run in the order of their making."""

    def __init__(self, hidden: Any, rotary: Any, attended: Any) -> None:
        self.hidden, self.attended = torch.empty_like(hidden), torch.empty_like(attended)
        self.rotary = tuple(map(torch.empty_like, rotary))
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
        """Return what computes `run` again and returns its results, each time in the same tensors."""
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
