"""The prompt, put together from text and features as LongVA does it."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from transformers import Qwen2Tokenizer

from featstore.models.longva.prompt import IMAGE_TOKEN, build_prompt, splice, split, tokenize

CPU = torch.device("cpu")
HEAD = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
TAIL = "<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return Qwen2Tokenizer.from_pretrained(tiny)


@pytest.fixture
def embed():
    """Embeddings whose every value is the token's id."""
    embedding = nn.Embedding(16, 2)
    with torch.no_grad():
        embedding.weight.copy_(torch.arange(16.0)[:, None].expand(16, 2))
    return embedding.requires_grad_(False)


def features(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None].expand(-1, 2)


def test_the_prompt_is_the_template_qwen_1_5_with_the_video_before_the_question():
    assert build_prompt("Why?", 1) == f"{HEAD}<image>\nWhy?{TAIL}"


def test_a_question_about_nothing_holds_no_placeholder():
    assert build_prompt("Why?", 0) == f"{HEAD}Why?{TAIL}"


def test_several_videos_and_images_stand_in_one_line_before_the_question():
    assert build_prompt("Why?", 3) == f"{HEAD}<image> <image> <image>\nWhy?{TAIL}"


def test_a_question_may_say_itself_where_the_video_goes():
    assert build_prompt("See <image>. Why?", 1) == f"{HEAD}See <image>. Why?{TAIL}"


@pytest.mark.parametrize(("question", "visuals"), [("<image>", 0), ("<image><image>", 1)])
def test_another_number_of_placeholders_is_refused(question, visuals):
    with pytest.raises(ValueError, match=r"holds \d <image>, but \d videos and images"):
        build_prompt(question, visuals)


def test_braces_and_percent_signs_in_a_question_stay_as_they_are():
    assert build_prompt("{question} %s {}", 0) == f"{HEAD}{{question}} %s {{}}{TAIL}"


def test_token_ids_are_those_of_the_original(reference):
    questions = json.loads((reference / "golden/prompts.json").read_text())
    cases = json.loads((reference / "golden/generations.json").read_text())
    for name in ("longva-tiny-a", "longva-tiny-b", "longva-tiny-c"):
        tokenizer = Qwen2Tokenizer.from_pretrained(reference / "checkpoints" / name)
        for case in cases:
            if case["checkpoint"] == name:
                prompt = build_prompt(questions[case["prompt_id"]], 1)
                assert tokenize(tokenizer, prompt) == case["input_ids"]


def test_texts_around_a_placeholder_are_tokenized_apart(tokenizer):
    ids = tokenize(tokenizer, "the color<image>ed bars")
    assert ids == [*tokenizer("the color").input_ids, IMAGE_TOKEN, *tokenizer("ed bars").input_ids]
    assert tokenizer("the colored bars").input_ids != [i for i in ids if i != IMAGE_TOKEN]


def test_a_placeholder_at_either_end_has_no_tokens_beside_it(tokenizer):
    assert tokenize(tokenizer, "<image>") == [IMAGE_TOKEN]
    assert split([IMAGE_TOKEN]) == [[], []]


def test_parts_are_what_lies_between_features():
    assert split([1, IMAGE_TOKEN, IMAGE_TOKEN, 2, 3]) == [[1], [], [2, 3]]
    assert split([1, 2]) == [[1, 2]]


def test_features_lie_between_the_embeddings_in_their_order(embed):
    row = splice(embed, [[1, 2], [], [3]], [features(0.5, 0.6), features(0.7)], device=CPU)
    assert row.shape == (1, 6, 2)
    assert torch.equal(row[0, :, 0], torch.tensor([1, 2, 0.5, 0.6, 0.7, 3]))


def test_text_alone_is_its_embeddings(embed):
    assert torch.equal(splice(embed, [[4, 5]], [], device=CPU)[0, :, 1], torch.tensor([4.0, 5.0]))


def test_a_prompt_that_is_too_long_loses_its_end(embed):
    row = splice(embed, [[1], [2]], [features(0.5, 0.6)], device=CPU, max_length=2)
    assert torch.equal(row[0, :, 0], torch.tensor([1, 0.5]))
