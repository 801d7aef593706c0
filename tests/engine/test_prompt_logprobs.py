"""Log-probabilities of the prompt's tokens: those of transformers, whatever was cached or found out before."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from zweave import Dispatch, Engine, Request, Sampling
from zweave.dispatcher import ReadState
from zweave.experts import Expert
from zweave.request import Result

TinyEngine = Callable[..., Engine]
PROMPT = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 32, 38, 46, 26, 4]
CHOICES = (None, "a", "late")


class Chooses:
    """Pools the prompt's states, and chooses one expert."""

    def __init__(self, expert: str | None, blocking: bool) -> None:
        self.expert, self.blocking = expert, blocking

    def probe(self, prompt: object) -> ReadState:
        return ReadState(1, candidates=[None, self.expert])

    def choose(self, prompt: object, evidence: object) -> Dispatch:
        return Dispatch(mixture=self.expert)


def requests(**fields: object) -> list[Request]:
    return [Request(PROMPT, expert=e, max_tokens=3, prompt_logprobs=3, **fields) for e in CHOICES]


@pytest.fixture(scope="module")
def wanted(
    tiny_model: Callable[..., Path],
    tiny_engine: TinyEngine,
    random_expert: Callable[..., Expert],
    merged_logits: Callable[..., Tensor],
) -> list[Tensor]:
    """Log-probabilities [tokens, vocabulary] under each choice, from transformers."""
    shapes = tiny_engine().model.config.adapted_shapes()
    experts = {"a": random_expert(shapes, seed=1), "late": random_expert(shapes, seed=3, first_layer=1)}
    directory = tiny_model("llama", vocab_size=96)
    return [merged_logits(directory, experts, choice, PROMPT).log_softmax(-1) for choice in CHOICES]


def check(results: list[Result], wanted: list[Tensor]) -> None:
    for result, values in zip(results, wanted, strict=True):
        first, *entries = result.prompt_logprobs
        assert first is None
        assert [entry.token_id for entry in entries] == PROMPT[1:]
        for entry, row in zip(entries, values, strict=False):
            assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=1e-4)
            assert [*entry.top] == row.topk(3).indices.tolist()
            assert [*entry.top.values()] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
        assert result.reused_tokens == result.resumed_tokens == 0


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_equal_transformers_also_where_the_prompt_is_cached(
    device: str, tiny_engine: TinyEngine, wanted: list[Tensor]
) -> None:
    engine = tiny_engine(device=device)
    plain = engine.generate([replace(request, prompt_logprobs=None) for request in requests()])
    assert all(result.prompt_logprobs is None for result in plain)
    whole = engine.generate(requests())
    check(whole, wanted)
    assert [result.token_ids for result in whole] == [result.token_ids for result in plain]
    # A few tokens a step, and with others that take what is cached.
    narrow = tiny_engine(device=device, max_batch_tokens=6, max_sequences=6)
    mixed = narrow.generate([*requests(), *(replace(r, prompt_logprobs=None) for r in requests())])
    check(mixed[:3], wanted)
    if device == "cpu":
        assert [r.prompt_logprobs for r in mixed[:3]] == [r.prompt_logprobs for r in whole]


def test_preemption_changes_nothing(tiny_engine: TinyEngine, wanted: list[Tensor]) -> None:
    many = [replace(request, max_tokens=20, ignore_eos=True) for request in requests()]
    cramped = tiny_engine(kv_tokens=64, max_batch_tokens=20, max_sequences=8)
    check(cramped.generate(many), wanted)
    assert cramped.stats().preemptions > 0


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("index", range(3))
def test_after_a_first_pass(
    index: int, blocking: bool, tiny_engine: TinyEngine, wanted: list[Tensor]
) -> None:
    dispatcher = Chooses(CHOICES[index], blocking)
    request = Request(PROMPT, expert="auto", max_tokens=3, prompt_logprobs=3, dispatcher=dispatcher)
    check(tiny_engine().generate(request), wanted[index : index + 1])


def test_one_token_has_none(tiny_engine: TinyEngine) -> None:
    [result] = tiny_engine().generate(Request([5], max_tokens=1, prompt_logprobs=0))
    assert result.prompt_logprobs == [None]


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_a_stream_tells_them_once_before_any_answer(device: str, tiny_engine: TinyEngine) -> None:
    request = Request(PROMPT, n=3, max_tokens=3, prompt_logprobs=1, sampling=Sampling(temperature=1, seed=1))
    engine = tiny_engine(device=device, max_batch_tokens=8, max_sequences=8)
    [whole] = engine.generate(request)
    first, *others = engine.stream(request)
    assert (first.sample, first.prompt_token_ids) == (0, PROMPT)
    assert first.prompt_logprobs == whole.prompt_logprobs and len(first.token_ids) == 1
    assert all(delta.prompt_logprobs is delta.prompt_token_ids is None for delta in others)
