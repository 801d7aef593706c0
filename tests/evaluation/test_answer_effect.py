"""What an expert does to the first token of answers, against the definition."""

from collections.abc import Callable

import pytest
import torch

from zweave.engine import Engine
from zweave.evaluation.answer_effect import AnswerEffect
from zweave.text import PromptTemplate


def test_the_divergence_and_the_likeliest_words(tiny_engine: Callable[..., Engine]):
    engine, template = tiny_engine(), PromptTemplate("Text: {text}", "It is")
    texts = ["a b c", "one two"]
    found = AnswerEffect.of(engine, "a", template, texts, most=2)
    total, mean = 0.0, 0.0
    for text in texts:
        ids = template.ids(engine.tokenizer, text)
        own, base = (engine.prompt_logits(ids, expert)[-1].double().softmax(-1) for expert in ("a", None))
        total += float((own * (own / base).log()).sum())
        mean = mean + own / 2
    assert found.divergence == pytest.approx(total / 2, rel=1e-3) and total > 0
    assert list(found.words.values()) == pytest.approx(torch.topk(mean, 2).values.tolist(), rel=1e-4)
    assert AnswerEffect.of(engine, None, template, texts).divergence == pytest.approx(0, abs=1e-6)
