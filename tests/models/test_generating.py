"""Faster answers of the same bits: keys and values that grow in place, fused prompts, one-token steps in CUDA graphs.

Without a GPU, a double stands for CUDA's graphs: it computes anew what was recorded, into the same tensors.
"""

from __future__ import annotations

import sys
from unittest.mock import Mock

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache, GenerationConfig, Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from featstore.models.generating import graphs, layers
from featstore.models.generating.growing import growing_cache
from featstore.models.generating.layers import FastLayers
from featstore.models.generating.prefix import CACHE

TOKENS = 6
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def record(inputs, run):
    """Stand for the recorder of CUDA graphs."""
    run()
    results = run()

    def replay():
        now = run()
        if isinstance(results, tuple):  # the other result is an input, which is written in place
            for held, new in zip(results, now, strict=True):
                held.copy_(new)
        return results

    return replay


def record_wrongly(inputs, run):
    """Record what differs in the last bits."""
    replay = record(inputs, run)

    def wrong():
        results = replay()
        return results if isinstance(results, tuple) else results.mul_(1.01)

    return wrong


def fail(inputs, run):
    raise RuntimeError("operation not permitted when stream is capturing")


class Kernels:
    """Stands for the fused kernels, in torch's operations."""

    def rms_norm(self, hidden, norm, update=None):
        total = hidden if update is None else update.add_(hidden)
        return total, norm(total)

    def rotate(self, heads, cosines, sines):
        split = heads.view(1, heads.shape[1], -1, cosines.shape[-1]).transpose(1, 2)
        heads.copy_(
            apply_rotary_pos_emb(split, split, cosines, sines)[0].transpose(1, 2).flatten(2)
        )

    def silu_multiply(self, gate, up):
        return torch.nn.functional.silu(gate, inplace=True).mul_(up)


class WrongKernels(Kernels):
    """Differs in the last bits."""

    def silu_multiply(self, gate, up):
        return super().silu_multiply(gate, up) * (1 + 1e-6)


class Sum(torch.nn.Module):
    """What its parts give together, as of a projection and its adapter."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = torch.nn.ModuleList(parts)

    def forward(self, x):
        return sum(part(x) for part in self.parts)


def make_model(device="cpu", dtype=torch.float32, **sizes):
    config = Qwen2Config(
        **{"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
        | {"num_attention_heads": 4, "num_key_value_heads": 2}
        | sizes
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config).to(device, dtype).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture
def use_double(monkeypatch):
    def use(record):
        monkeypatch.setattr(layers, "_serves", lambda model: True)
        monkeypatch.setattr(graphs._Inputs, "record", record)

    return use


def ask(model, cache=None, steps=None, seed=1, **options):
    """Return the ids and the logits of an answer."""
    logits = []

    def keep(ids, scores):
        logits.append(scores.clone())
        return scores

    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(1, 9, model.config.hidden_size, generator=generator)
    given = {} if cache is None else {CACHE: cache}
    config = GenerationConfig(
        max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, pad_token_id=0,
        eos_token_id=1, **options,
    )  # fmt: skip
    steps = steps or FastLayers(model)
    with torch.inference_mode(), steps.used():
        ids = model.generate(
            inputs_embeds=embeds.to(model.device, model.dtype),
            generation_config=config,
            logits_processor=[keep],
            **given,
        )
    return ids, torch.cat(logits)


def same(one, other):
    return all(map(torch.equal, one, other))


# Keys and values


def test_keys_and_values_grow_in_place_and_are_those_of_transformers():
    caches = growing_cache(), DynamicCache()
    torch.manual_seed(0)
    places = set()
    with torch.inference_mode():
        for rows in (5, 1, 1, -2, 3, 400, 1):
            new = torch.randn(2, 1, 2, abs(rows), 8)
            for cache in caches:
                if rows < 0:
                    cache.crop(rows)
                else:
                    cache.update(*new, 0)
            ours, theirs = (cache.layers[0] for cache in caches)
            assert torch.equal(ours.keys, theirs.keys)
            assert torch.equal(ours.values, theirs.values)
            places.add(ours.keys.data_ptr())
    assert len(places) == 2  # the 400 rows had no room


def test_what_was_put_in_their_place_is_appended_to():
    cache, rows = growing_cache(), torch.randn(3, 1, 2, 4, 8)
    cache.update(rows[0], rows[0], 0)
    cache.batch_repeat_interleave(2)
    more = rows[1].expand(2, 2, 4, 8)
    keys, _ = cache.update(more, more, 0)
    assert torch.equal(keys[1], torch.cat((rows[0], rows[1]), dim=-2)[0])


def test_an_answer_from_growing_keys_has_the_same_bits(model):
    assert same(ask(model), ask(model, growing_cache()))


# Fused kernels


@pytest.mark.parametrize(("kernels", "fused"), [(Kernels, True), (WrongKernels, False)])
@pytest.mark.parametrize("prefix", [False, True])
def test_prompts_from_fused_kernels_have_the_same_bits_or_they_are_not_used(
    model, use_double, monkeypatch, kernels, fused, prefix
):
    def start():
        cache = growing_cache()
        if prefix:  # the rest of the prompt has a mask
            embeds = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(3))
            with torch.inference_mode():
                model.model(inputs_embeds=embeds, use_cache=True, **{CACHE: cache})
        return cache

    expected = ask(model, start())
    use_double(record)
    monkeypatch.setattr(layers, "fused_passes", lambda: True)
    monkeypatch.setitem(sys.modules, "featstore.torch.kernels.language", kernels())
    monkeypatch.setattr("featstore.torch.kernels.language", kernels(), raising=False)
    steps = FastLayers(model)
    steps.make()
    assert (steps._halves is not None) is fused
    assert same(ask(model, start(), steps), expected)


# Graphs


@pytest.mark.parametrize("cache", [lambda: None, growing_cache])
def test_steps_in_graphs_have_the_bits_of_the_layers(model, use_double, cache):
    use_double(record)
    steps, expected = FastLayers(model), [ask(model, seed=seed) for seed in (1, 2)]
    for seed in (1, 2, 1):
        assert same(ask(model, cache(), steps, seed), expected[seed - 1])
        assert len(steps._steps._graphs) == 2


@pytest.mark.parametrize("recorder", [record_wrongly, fail])
def test_graphs_that_differ_or_fail_are_given_up_and_the_answer_is_as_without(
    model, use_double, recorder
):
    expected = ask(model)
    use_double(recorder)
    steps = FastLayers(model)
    for _ in range(2):
        assert same(ask(model, None, steps), expected)
        assert not steps._steps._graphs


def test_graphs_are_made_though_attention_gives_other_last_bits_each_time(
    model, use_double, monkeypatch
):
    use_double(record)
    exact, calls = torch.nn.functional.scaled_dot_product_attention, []

    def attend(*args, **options):
        calls.append(1)
        return exact(*args, **options) * (1 + 1e-6 * (len(calls) % 2))

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    steps = FastLayers(model)
    steps.make()
    assert len(steps._steps._graphs) == 2


def test_graphs_are_made_before_the_first_answer(model, use_double):
    use_double(record)
    steps = FastLayers(model)
    steps.make()
    made = steps._steps._graphs[0]
    assert same(ask(model, None, steps), ask(model, None))
    assert steps._steps._graphs[0] is made


def test_several_sequences_are_computed_without_graphs(model, use_double):
    expected = ask(model, num_beams=2)
    use_double(record)
    steps = FastLayers(model)
    assert same(ask(model, None, steps, num_beams=2), expected)
    assert not steps._steps._graphs


def test_graphs_are_made_anew_for_other_weights(use_double):
    use_double(record)
    model = make_model()
    steps = FastLayers(model)
    ask(model, None, steps)
    before = steps._steps._graphs[0]
    weight = model.model.layers[1].mlp.up_proj.weight
    held, weight.data = weight.data, weight.data.clone()
    ask(model, None, steps)
    assert steps._steps._graphs[0] is not before
    assert torch.equal(held, weight)


def test_hooks_on_parts_of_a_layer_are_called(model, use_double, monkeypatch):
    """Graphs do not call them, nor do fused kernels those of attention."""
    use_double(record)
    steps, called = FastLayers(model), []
    expected = ask(model, steps=steps)
    hook = model.model.layers[1].mlp.register_forward_hook(lambda *words: called.append(1))
    with monkeypatch.context() as patch:
        patch.setattr(steps._steps, "forward", Mock(side_effect=AssertionError))
        assert same(ask(model, steps=steps), expected)
    hook.remove()
    assert len(called) == TOKENS
    assert same(ask(model, steps=steps), expected)


def test_graphs_are_made_anew_with_an_adapter(use_double):
    use_double(record)
    model = make_model()
    steps = FastLayers(model)
    before, graph = ask(model, steps=steps), steps._steps._graphs[0]
    projection = model.model.layers[0].mlp.down_proj
    adapter = torch.nn.Linear(projection.in_features, projection.out_features)
    model.model.layers[0].mlp.down_proj = Sum(projection, adapter.requires_grad_(False))
    assert not same(ask(model, steps=steps), before)
    assert steps._steps._graphs[0] is not graph


def test_the_layers_are_as_they_were_however_an_answer_ends(model, use_double):
    use_double(record)
    steps = FastLayers(model)
    with pytest.raises(KeyboardInterrupt), steps.used():
        raise KeyboardInterrupt
    assert not any("forward" in vars(layer) for layer in model.model.layers)


def test_no_graphs_are_made_on_a_cpu(model):
    steps = FastLayers(model)
    ask(model, None, steps)
    assert not steps._steps._graphs


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_answers_on_a_gpu_are_fused_and_in_graphs_and_have_the_same_bits(dtype):
    model = make_model("cuda", dtype, hidden_size=512, intermediate_size=1024)
    steps = FastLayers(model)
    steps.make()
    assert steps._halves is not None
    assert len(steps._steps._graphs) == 2
    with sdpa_kernel(SDPBackend.MATH):  # cuDNN's gives other last bits each time
        expected = ask(model)
        for _ in range(2):
            assert same(ask(model, growing_cache(), steps), expected)
    held = torch.cuda.memory_allocated()
    steps.clear()
    assert torch.cuda.memory_allocated() < held


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_fused_silu_has_the_bits_of_torchs_for_every_value(dtype):
    from featstore.torch.kernels.language import silu_multiply

    every = torch.arange(1 << 16, dtype=torch.int32, device="cuda").to(torch.int16).view(dtype)
    for factor in (1.0, -3.14159, 60000.0):
        up = torch.full_like(every, factor)
        expected = torch.nn.functional.silu(every) * up
        assert torch.equal(silu_multiply(every.clone(), up).nan_to_num(), expected.nan_to_num())
