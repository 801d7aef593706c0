"""A reader that learns to read: which word means yes is told by the order of words alone."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from zweave.describe.reader import Reader
from zweave.describe.tasks import chosen_tasks, hidden_tasks
from zweave.describe.token_states import TokenStates
from zweave.describe.train.reading import (
    DescriptionSet,
    ReadingAccuracy,
    ReadingRecipe,
    ReadingTraining,
    read_descriptions,
)
from zweave.errors import ZweaveError

TASKS = chosen_tasks(hidden_tasks(), ("positive", "sum", "about-sports"))
QUICK = ReadingRecipe(steps=60, descriptions=200, batch=32, lr=3e-3)


class Words:
    """An encoder whose states say nothing but which word stands there, and not where."""

    name, width = "words", 64

    def encode(self, texts: Sequence[str]) -> TokenStates:
        parts = []
        for text in texts:
            states = [
                torch.randn(64, generator=torch.Generator().manual_seed(random.Random(word).getrandbits(32)))
                for word in text.lower().replace('"', "").replace(",", "").replace(".", "").split()
            ]
            parts.append(TokenStates(torch.stack(states)[None], torch.ones(1, len(states), dtype=torch.bool)))
        return TokenStates.joined(parts, 64)


def test_descriptions_are_told_with_what_they_say():
    tasks = chosen_tasks(hidden_tasks(), ("positive", "sum"), None)
    found = DescriptionSet.drawn(tasks, ["positive", "sum"], Words(), 50, "a")
    assert len(found.texts) == 50 and set(found.attribute.tolist()) == {0, 1}
    assert ((found.yes < 0) == (found.attribute == 1)).all() and (found.yes // 2 == found.no // 2)[
        found.yes >= 0
    ].all()
    again = DescriptionSet.drawn(tasks, ["positive", "sum"], Words(), 50, "a")
    assert torch.equal(again.texts.states, found.texts.states)


@pytest.mark.slow
def test_the_order_of_words_is_read():
    torch.manual_seed(0)
    reader = Reader(64, 32, 2, 2)
    words = chosen_tasks(TASKS, None, (("red", "blue"),))
    attributes = ["about-sports", "positive"]
    told = DescriptionSet.drawn(words, attributes, Words(), 1500, "learnt")
    training = ReadingTraining(reader, told, 2, replace(QUICK, steps=600, batch=64))
    new = DescriptionSet.drawn(words, attributes, Words(), 300, "new")
    assert training.accuracy(new).order < 0.7
    while not training.is_done:
        training.advance()
    found = training.accuracy(new)
    assert found.order > 0.95 and found.attribute > 0.95 and found.pair == 1


def test_tasks_without_words_can_be_read():
    numeric = chosen_tasks(hidden_tasks(), ("sum", "larger"))
    told = DescriptionSet.drawn(numeric, ["larger", "sum"], Words(), 40, "a")
    training = ReadingTraining(Reader(64, 16, 1, 1), told, 2, QUICK)
    losses = [training.advance() for _ in range(40)]
    assert losses[-1] < losses[0] / 2


def test_a_reader_learns_in_place_and_the_same_again():
    ends = []
    for _ in range(2):
        torch.manual_seed(0)
        reader = Reader(64, 16, 1, 1)
        before = reader.queries.detach().clone()
        read_descriptions(reader, Words(), TASKS, replace(QUICK, steps=3))
        assert not torch.equal(reader.queries, before)
        ends.append(reader.queries.detach())
    assert torch.equal(*ends)


def test_accuracy_counts_what_has_words():
    reader = Reader(64, 16, 1, 1)
    told = DescriptionSet.drawn(TASKS, ["about-sports", "positive", "sum"], Words(), 40, "a")
    training = ReadingTraining(reader, told, 3, QUICK)
    with torch.no_grad():
        for linear in (training.attribute, training.yes):
            linear.weight.zero_()
            linear.bias.zero_()
        training.attribute.bias[2] = 1
        training.yes.bias.copy_(torch.arange(24.0))
    labelled = told.yes >= 0
    assert training.accuracy(told) == ReadingAccuracy(
        pytest.approx((told.attribute == 2).float().mean().item()),
        pytest.approx((told.yes[labelled] >= 22).float().mean().item()),
        pytest.approx((told.yes > told.no)[labelled].float().mean().item()),
    )


def test_tasks_are_chosen_by_attribute_and_words():
    chosen = chosen_tasks(hidden_tasks(), ("positive", "sum"), (("yes", "no"),))
    assert [task.name for task in chosen] == ["positive-yes-no", "positive-no-yes"]
    with pytest.raises(ZweaveError, match="no attribute 'colour': choose of about-business, "):
        chosen_tasks(hidden_tasks(), ("colour",))
    with pytest.raises(ZweaveError, match="no pair of words 'no-yes': choose of yes-no, "):
        chosen_tasks(hidden_tasks(), None, (("no", "yes"),))
    with pytest.raises(ZweaveError, match="no hidden task has these attributes and these words"):
        chosen_tasks(hidden_tasks(), ("sum",), (("yes", "no"),))
