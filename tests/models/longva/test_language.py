"""The language side of a checkpoint: what is read, what is refused, and in what manner it generates."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from featstore.errors import CheckpointError, FeatstoreError
from featstore.models.generating.settings import MAX_NEW_TOKENS, read_options
from featstore.models.longva.language import check_attention, load_language

CPU = torch.device("cpu")
LAYER = "model.layers.0.mlp.up_proj.weight"


def load(checkpoint, dtype=torch.float32, **options):
    return load_language(checkpoint, device=CPU, dtype=dtype, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_come_in_the_dtype_asked_for_and_rotary_frequencies_in_float32(tiny, dtype):
    model = load(tiny, dtype).model
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    exact = 1.0 / 1e9 ** (torch.arange(0, 32, 2, dtype=torch.float32) / 32)
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert torch.equal(model.model.rotary_emb.inv_freq, exact)
    assert not any(buffer.is_meta for buffer in model.buffers())


def test_the_vocabulary_is_cut_to_the_tokenizers(tiny):
    language = load(tiny)
    stored = load_file(tiny / "model.safetensors")
    assert len(stored["lm_head.weight"]) == 576
    assert torch.equal(language.model.lm_head.weight, stored["lm_head.weight"][:512].float())
    embedding = stored["model.embed_tokens.weight"][:512].float()
    assert torch.equal(language.model.model.embed_tokens.weight, embedding)
    assert torch.equal(language.embed(torch.tensor([7])), embedding[7:8])


def test_no_file_of_the_vision_side_is_opened(altered):
    checkpoint = altered()
    tensors = load_file(checkpoint / "model.safetensors")
    speaks = {n: t for n, t in tensors.items() if "vision" not in n and "projector" not in n}
    save_file(speaks, checkpoint / "language.safetensors")
    weight_map = dict.fromkeys(tensors, "gone.safetensors")
    weight_map |= dict.fromkeys(speaks, "language.safetensors")
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    (checkpoint / "model.safetensors").unlink()
    assert torch.equal(
        load(checkpoint).model.model.layers[0].mlp.up_proj.weight, tensors[LAYER].float()
    )


@pytest.mark.slow
def test_shards_hold_the_same_model(make_checkpoint, tiny, tmp_path):
    sharded = load(make_checkpoint(tmp_path / "sharded", shards=3)).model.state_dict()
    whole = load(tiny).model.state_dict()
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)


def test_no_weight_aliases_the_file(altered):
    checkpoint = altered()
    language = load(checkpoint, torch.bfloat16)
    before = language.model.lm_head.weight.clone()
    data = checkpoint / "model.safetensors"
    data.write_bytes(bytes(data.stat().st_size))
    assert torch.equal(language.model.lm_head.weight, before)


def test_tied_embeddings_are_one_tensor(altered):
    checkpoint = altered(
        {"tie_word_embeddings": True},
        lambda tensors: {n: t for n, t in tensors.items() if n != "lm_head.weight"},
    )
    model = load(checkpoint).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_tied_checkpoint_may_keep_the_one_tensor_by_either_name_or_both(altered):
    """transformers keeps the embedding, safetensors' save_model the head."""
    names = ("model.embed_tokens.weight", "lm_head.weight")

    def keep(*kept):
        def tensors(found):
            one = found.pop(names[0])
            found.pop(names[1])
            return found | {name: one.clone() for name in kept}

        return load(altered({"tie_word_embeddings": True}, tensors)).model

    expected = keep(names[0])
    tokens = torch.tensor([[1, 2, 3]])
    for kept in (names[1:], names):
        model = keep(*kept)
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert torch.equal(model(tokens).logits, expected(tokens).logits)
    with pytest.raises(CheckpointError, match=r"lacks 1 of .* 'model\.embed_tokens\.weight'"):
        keep()


def test_a_tied_checkpoint_whose_head_is_another_tensor_is_refused(altered):
    said = r"tie_word_embeddings = true .* hold two that differ; .* tie_word_embeddings = false"
    with pytest.raises(CheckpointError, match=said):
        load(altered({"tie_word_embeddings": True}))

    def pad(tensors):
        """The same rows for the tokens there are, others for those there are not."""
        head = tensors["model.embed_tokens.weight"].clone()
        head[512:] += 1
        return tensors | {"lm_head.weight": head}

    model = load(altered({"tie_word_embeddings": True}, pad)).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_an_untied_checkpoint_needs_both_tensors(altered):
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        checkpoint = altered(tensors=lambda ts, name=name: {n: ts[n] for n in ts if n != name})
        with pytest.raises(CheckpointError, match=f"lacks 1 of .* '{name}'"):
            load(checkpoint)


def test_rope_scaling_is_ignored_as_the_original_ignores_it(altered):
    checkpoint = altered({"rope_scaling": {"type": "linear", "factor": 4.0}})
    assert load(checkpoint).model.config.rope_parameters["rope_type"] == "default"


def test_a_missing_tensor_is_refused_by_name(altered):
    checkpoint = altered(tensors=lambda ts: {n: t for n, t in ts.items() if n != LAYER})
    with pytest.raises(CheckpointError, match=rf"lacks 1 of .* '{LAYER}'"):
        load(checkpoint)


def test_a_tensor_of_unknown_use_is_refused_by_name(altered):
    name = "model.layers.0.mlp.up_proj.lora_A.weight"
    checkpoint = altered(tensors=lambda ts: ts | {name: torch.zeros(2)})
    with pytest.raises(CheckpointError, match=rf"unknown use, the first is '{name}'.*adapter"):
        load(checkpoint)


def test_a_tensor_of_another_shape_is_refused(altered):
    checkpoint = altered(tensors=lambda ts: ts | {LAYER: torch.zeros(320, 64)})
    with pytest.raises(
        CheckpointError, match=r"of shape \(320, 64\), its config makes it \(320, 128\)"
    ):
        load(checkpoint)


def test_a_quantized_checkpoint_is_refused(altered):
    checkpoint = altered(tensors=lambda ts: ts | {LAYER: ts[LAYER].to(torch.int8)})
    with pytest.raises(CheckpointError, match="as I8, expected one of F16, BF16, F32"):
        load(checkpoint)


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_refused(altered):
    with pytest.raises(CheckpointError, match="has 512 tokens, its embedding 500 rows"):
        load(altered({"vocab_size": 500}))


def test_a_folder_without_a_tokenizer_is_refused(altered):
    checkpoint = altered()
    for name in ("tokenizer.json", "vocab.json"):
        (checkpoint / name).unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json and no vocab\.json"):
        load(checkpoint)


def test_a_vocabulary_without_merges_is_refused(altered):
    """transformers would take each byte for a token."""
    checkpoint = altered()
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "merges.txt").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"merges\.txt cannot be read as a tokenizer \(it is e"
    ):
        load(checkpoint)
    (checkpoint / "merges.txt").unlink()
    with pytest.raises(
        CheckpointError, match=r"no tokenizer\.json and no vocab\.json with its mer"
    ):
        load(checkpoint)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 7031645\n"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (POINTER, r"\(it is a Git LFS pointer, 72 bytes .*\); run `git lfs pull`"),
        (b"", r"\(it is empty\); fetch it again"),
        (b"<!DOCTYPE html><html>", r"\(it is a web page, .*hf auth login"),
    ],
    ids=["pointer", "empty", "page"],
)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "vocab.json"])
def test_a_tokenizers_file_that_stands_for_another_is_named(altered, name, content, sentence):
    checkpoint = altered()
    if name == "vocab.json":  # else it is not read
        (checkpoint / "tokenizer.json").unlink()
    (checkpoint / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"checkpoint/{name} cannot be read .*{sentence}"):
        load(checkpoint)


def test_merges_that_stand_for_a_file_are_named(altered):
    checkpoint = altered()
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "merges.txt").write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=r"merges\.txt cannot .* \(it is a Git LFS pointer"):
        load(checkpoint)


def test_a_large_tokenizer_is_read(altered, tiny):
    checkpoint = altered()
    path = checkpoint / "tokenizer.json"
    path.write_bytes(path.read_bytes() + b" " * (20 << 20))
    text = "What color is the ball?"
    assert load(checkpoint).tokenizer(text).input_ids == load(tiny).tokenizer(text).input_ids


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", "128"),
        ("num_hidden_layers", 0),
        ("hidden_act", "silky"),
        ("vocab_size", None),
    ],
)
def test_a_config_that_is_no_qwen2s_is_refused(altered, field, value):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load(altered({field: value}))


def test_an_attention_that_is_not_to_be_had_is_refused(tiny):
    with pytest.raises(FeatstoreError, match="'flash_attention_9' cannot be used here"):
        load(tiny, attn_implementation="flash_attention_9")
    with pytest.raises(FeatstoreError, match="'flash_attention_9' cannot be used here"):
        check_attention("flash_attention_9")
    check_attention("sdpa")


def test_the_limit_of_a_prompt_is_the_configs(altered, tiny):
    assert load(tiny).max_length == 32768
    assert load(altered({"tokenizer_model_max_length": ...})).max_length is None


# The manner of generating


def test_the_checkpoints_generation_config_stays_in_force(tiny):
    config = read_options(load(tiny).generation, {}).config
    assert config.repetition_penalty == 1.05
    assert config.eos_token_id == [511, 509]
    assert config.pad_token_id == 509
    assert config.max_new_tokens == MAX_NEW_TOKENS


def test_generating_is_greedy_and_drops_what_only_drawing_needs(tiny):
    stated = load(tiny).generation
    assert stated["temperature"] == 0.7
    config = read_options(stated, {"temperature": 0, "top_p": None}).config
    assert (config.do_sample, config.temperature, config.top_k) == (False, None, None)


def test_drawing_takes_the_checkpoints_temperature_and_the_callers(tiny):
    stated = load(tiny).generation
    assert read_options(stated, {"do_sample": True}).config.temperature == 0.7
    config = read_options(stated, {"do_sample": True, "temperature": 0.2}).config
    assert (config.temperature, config.top_k) == (0.2, 20)


def test_without_a_generation_config_the_ends_are_the_configs(altered):
    checkpoint = altered()
    (checkpoint / "generation_config.json").unlink()
    assert load(checkpoint).generation == {"bos_token_id": 509, "eos_token_id": 511}
    assert read_options(load(checkpoint).generation, {}).config.pad_token_id == 511


def test_an_unknown_option_is_refused_by_name(tiny):
    with pytest.raises(TypeError, match="'max_tokens' is not an option of generate"):
        read_options(load(tiny).generation, {"max_tokens": 5})
    with pytest.raises(TypeError, match="did you mean 'nframe'"):
        read_options({}, {"nframes": 5})
