"""Whether an answer stays the same is told without generating it again."""

import math

import pytest
import torch

from featstore.models import CachedLongVA
from featstore.models.greedy_answer import GreedyAnswer

END = 0


class Chooser:
    """Its next token depends on the one before and on the features, (tokens, tokens): logits by token before."""

    def answer_features(self, prompt, features, *, max_new_tokens, num_beams, logits_processor):
        [note] = logits_processor
        ids = [1]
        while len(ids) <= max_new_tokens and (len(ids) == 1 or ids[-1] != END):
            scores = note(torch.tensor([ids]), features[ids[-1]][None].clone())
            ids.append(int(scores[0].argmax()))
        return ids[1:]


LOGITS = torch.tensor([[0.0, 0, 0], [0, 1, 2], [3, 1, 0]])  # 1 -> 2 -> END


def test_the_same_features_give_the_same_answer_and_no_divergence():
    answer = GreedyAnswer(Chooser(), "?", 5, LOGITS)
    assert answer.ids == [2, END]
    assert answer.compare(LOGITS) == (0.0, True)


def test_the_divergence_is_the_mean_over_the_steps_of_the_answer():
    other = LOGITS.clone()
    other[1, 1] = 1.5
    kl, identical = GreedyAnswer(Chooser(), "?", 5, LOGITS).compare(other)
    p, q = (torch.tensor(row).double().softmax(0) for row in ([0.0, 1, 2], [0, 1.5, 2]))
    assert identical
    assert kl == pytest.approx(float((p * (p / q).log()).sum()) / 2)


def test_another_choice_is_another_answer_and_the_later_steps_are_still_compared():
    other = LOGITS.clone()
    other[1, 1] = 9
    other[2, 0] = 4
    kl, identical = GreedyAnswer(Chooser(), "?", 5, LOGITS).compare(other)
    only_first = other.clone()
    only_first[2] = LOGITS[2]
    less, _ = GreedyAnswer(Chooser(), "?", 5, LOGITS).compare(only_first)
    assert not identical
    assert 0 < less < kl


def test_tokens_that_are_ruled_out_count_nothing():
    ruled_out = LOGITS.clone()
    ruled_out[:, 1] = -torch.inf
    kl, _ = GreedyAnswer(Chooser(), "?", 5, ruled_out).compare(ruled_out)
    assert kl == 0
    kl, _ = GreedyAnswer(Chooser(), "?", 5, LOGITS).compare(ruled_out)
    assert kl == math.inf


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_it_is_the_answer_that_the_model_gives_by_itself(tiny):
    model = CachedLongVA(tiny, device="cpu")
    width = model._language.embed.embedding_dim
    x = torch.randn((64, width), generator=torch.Generator().manual_seed(0))
    answer = GreedyAnswer(model, "What happens?", 12, x)
    assert answer.ids == model.answer_features("What happens?", x, max_new_tokens=12)
    found = set()
    for seed in range(12):
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        other = x + 10 ** (seed / 3 - 4) * noise
        same = model.answer_features("What happens?", other, max_new_tokens=12) == answer.ids
        assert answer.compare(other)[1] == same
        found.add(same)
    assert found == {True, False}
