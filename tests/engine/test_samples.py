"""Several answers to one prompt, which is computed once."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from zweave import AsyncEngine, Delta, Dispatch, Engine, Request, Sampling, ZweaveError
from zweave.dispatcher import ReadState

TinyEngine = Callable[..., Engine]
PROMPT = [7 * i % 90 + 3 for i in range(41)]
REQUEST = Request(
    PROMPT, expert="a", n=4, max_tokens=6, ignore_eos=True, sampling=Sampling(temperature=1, seed=2**64 - 2)
)


def alone(engine: Engine, sample: int) -> list[int]:
    """The answer of one sample, as a request of its own."""
    sampling = replace(REQUEST.sampling, seed=(REQUEST.sampling.seed + sample) % 2**64)
    return engine.generate(replace(REQUEST, n=1, sampling=sampling))[0].token_ids


@pytest.fixture(scope="module")
def wanted(tiny_engine: TinyEngine) -> list[list[int]]:
    engine = tiny_engine()
    answers = [alone(engine, sample) for sample in range(REQUEST.n)]
    assert len({tuple(answer) for answer in answers}) == REQUEST.n
    return answers


@pytest.mark.parametrize(
    "options", [{}, {"device": "reference"}, {"max_batch_tokens": 16, "max_sequences": 8}]
)
def test_the_prompt_is_computed_once(options: dict, tiny_engine: TinyEngine, wanted: list[list[int]]) -> None:
    engine = tiny_engine(**options)
    other, result = engine.generate([replace(REQUEST, n=1, prompt=[5, 6]), REQUEST])
    assert [sample.token_ids for sample in result.samples] == wanted
    assert (result.token_ids, result.text) == (wanted[0], result.samples[0].text)
    assert other.samples is None and all(sample.samples is None for sample in result.samples)
    # Each answer computes the prompt's last token, to sample its first one, and all of its own but its last.
    num_own = REQUEST.max_tokens - 1
    shared = len(PROMPT) + (REQUEST.n - 1) + REQUEST.n * num_own
    assert engine.stats().tokens_computed == shared + 2 + num_own


def test_preemption_changes_nothing(tiny_engine: TinyEngine, wanted: list[list[int]]) -> None:
    engine = tiny_engine(kv_tokens=56, block_size=2)
    assert [sample.token_ids for sample in engine.generate(REQUEST)[0].samples] == wanted
    assert engine.stats().preemptions > 0


def text_of(deltas: list[Delta], sample: int) -> str:
    return "".join(delta.text for delta in deltas if delta.sample == sample)


def test_streams_tell_the_answers_apart(tiny_engine: TinyEngine, wanted: list[list[int]]) -> None:
    engine = tiny_engine()
    deltas = [*engine.stream(REQUEST)]
    results = {delta.sample: delta.result for delta in deltas if delta.result is not None}
    assert [results[sample].token_ids for sample in range(REQUEST.n)] == wanted
    assert all(text_of(deltas, sample) == result.text for sample, result in results.items())
    assert not engine.has_work and len({delta.request_id for delta in deltas}) == 1


def test_asyncio(tiny_engine: TinyEngine, wanted: list[list[int]]) -> None:
    async def ask() -> None:
        async with AsyncEngine(tiny_engine()) as serving:
            result = await serving.generate(REQUEST)
            assert [sample.token_ids for sample in result.samples] == wanted
            deltas = [delta async for delta in serving.stream(REQUEST)]
            assert sum(delta.result is not None for delta in deltas) == REQUEST.n
            assert (await serving.generate(replace(REQUEST, n=1))).samples is None

    asyncio.run(ask())


def test_a_cancelled_request_ends_with_all_its_answers(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine()
    request_id, other = engine.add(REQUEST), engine.add(replace(REQUEST, n=1))
    engine.step()
    engine.cancel(request_id)
    reasons: dict[int, list[str]] = {request_id: [], other: []}
    while engine.has_work:
        for delta in engine.step():
            if delta.result is not None:
                reasons[delta.request_id].append(delta.result.finish_reason)
    assert reasons == {request_id: ["cancelled"] * REQUEST.n, other: ["length"]}


class Once:
    """Reads a state and chooses "a"; fails if told so."""

    def __init__(self, blocking: bool, fails: bool = False) -> None:
        self.blocking, self.fails, self.calls = blocking, fails, 0

    def probe(self, prompt: object) -> ReadState:
        self.calls += 1
        return ReadState(1, candidates=[None, "a"])

    def choose(self, prompt: object, evidence: object) -> Dispatch:
        if self.fails:
            raise ValueError("no idea")
        return Dispatch(mixture="a")


@pytest.mark.parametrize("blocking", [False, True])
def test_a_dispatcher_is_asked_once(blocking: bool, tiny_engine: TinyEngine, wanted: list[list[int]]) -> None:
    dispatcher = Once(blocking)
    [result] = tiny_engine().generate(replace(REQUEST, expert="auto", dispatcher=dispatcher))
    assert [sample.token_ids for sample in result.samples] == wanted
    assert all(sample.expert == "a" for sample in result.samples) and dispatcher.calls == 1


def test_a_dispatcher_that_fails_fails_all_answers(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine()
    request = replace(REQUEST, expert="auto", dispatcher=Once(False, fails=True))
    [result] = engine.generate(request)
    assert [sample.finish_reason for sample in result.samples] == ["error"] * REQUEST.n
    assert "no idea" in result.error and not engine.has_work


def test_greedy_answers_would_be_the_same() -> None:
    with pytest.raises(ZweaveError, match="2 answers would be the same: give a temperature above 0"):
        Request("hello", n=2)
