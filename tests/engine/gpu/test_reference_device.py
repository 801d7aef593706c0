"""The GPU engine on a CPU, with references in the place of kernels: what the CPU engine gives, token for token."""

from collections.abc import Callable
from contextlib import suppress
from itertools import count
from random import Random
from typing import Any

import pytest

from zweave.engine import Engine
from zweave.engine.gpu import step_input
from zweave.engine.gpu.backend import ReferenceBackend
from zweave.experts import Expert
from zweave.io.submit import at_once
from zweave.kv_cache.block_pool import KVCache
from zweave.request import Request, Result, Sampling
from zweave.scheduler import Chunk

# Blocks, rows and slots for a few requests at once.
TIGHT = {"kv_tokens": 80, "max_sequences": 9, "max_batch_tokens": 48, "slots": 3}
SEEDS = range(4)
CHOICES: list[Any] = [None, "a", "b", "late", {"a": 0.5, "b": 0.25}]


def traffic(num: int, seed: int) -> list[Request]:
    """Requests whose prompts share beginnings, some sampled, penalised, with log-probabilities or a priority."""
    random = Random(seed)
    trunk = [random.randrange(3, 90) for _ in range(60)]
    requests = []
    for index in range(num):
        prompt = trunk[: random.randrange(1, 50)] + [
            random.randrange(3, 90) for _ in range(random.randrange(6))
        ]
        penalty = random.choice([0.0, 0.0, 0.0, 1.5])
        sampling = Sampling(temperature=random.choice([0.0, 0.0, 0.7]), seed=index, presence_penalty=penalty)
        requests.append(
            Request(
                prompt or [5],
                expert=random.choice(CHOICES),
                max_tokens=random.randrange(1, 12),
                sampling=sampling,
                logprobs=random.choice([None, None, 3]),
                prompt_logprobs=random.choice([None, None, None, 2]),
                priority=random.choice([0, 0, 0, -1]),
                stop_token_ids=random.choice([(), tuple(range(3, 90, 4))]),
            )
        )
    return requests


def essence(result: Result) -> tuple[object, ...]:
    of_prompt = [entry and entry.token_id for entry in result.prompt_logprobs or ()]
    return result.token_ids, result.text, result.finish_reason, of_prompt


def test_a_top_k_beyond_any_vocabulary_keeps_all(tiny_engine: Callable[..., Engine]) -> None:
    sampling = Sampling(temperature=0.7, top_k=10**5000, seed=1)
    requests = [Request([5, 6], max_tokens=3, sampling=sampling)]
    wanted = tiny_engine().generate(requests)
    assert tiny_engine(device="reference").generate(requests) == wanted and len(wanted[0].token_ids) == 3


@pytest.mark.parametrize("name", ["submit", "mark"])
def test_a_launch_that_is_interrupted_can_be_taken_again(
    name: str, tiny_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its work is on the device by then, and changes the tokens of the step before that the host does not know yet."""
    requests = traffic(4, seed=1)
    wanted = [essence(result) for result in tiny_engine().generate(requests)]
    engine, calls, original = tiny_engine(device="reference"), count(), getattr(ReferenceBackend, name)

    def interrupted(*args: Any) -> Any:
        done = original(*args)
        if next(calls) % 3 == 2:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(ReferenceBackend, name, interrupted)
    ids = [engine.add(request) for request in requests]
    results: dict[int, Any] = {}
    for _ in range(1000):
        if not engine.has_work:
            break
        with suppress(KeyboardInterrupt):
            results |= {delta.request_id: delta.result for delta in engine.step() if delta.result}
    assert [essence(results[request_id]) for request_id in ids] == wanted


def test_a_mixed_batch(tiny_engine: Callable[..., Engine]) -> None:
    requests = traffic(24, seed=0)
    wanted = tiny_engine().generate(requests)
    given = tiny_engine(device="reference").generate(requests)
    assert [essence(result) for result in given] == [essence(result) for result in wanted]
    for one, other in zip(given, wanted, strict=True):
        entries = [[*(r.logprobs or ()), *(r.prompt_logprobs or [None])[1:]] for r in (one, other)]
        for a, b in zip(*entries, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4) and set(a.top) == set(b.top)


def drive(engine: Engine, experts: list[Expert], seed: int) -> dict[int, Result]:
    """Results of requests that arrive, are cancelled, and reload experts, while others run."""
    random = Random(seed)
    waiting, results = traffic(60, seed), {}
    while waiting or engine.has_work:
        for _ in range(min(random.randrange(4), len(waiting))):
            engine.add(waiting.pop())
        if random.random() < 0.1:
            engine.load_expert(random.choice("ab"), random.choice(experts))
        if random.random() < 0.1:
            engine.cancel(random.randrange(60))
        for delta in engine.step():
            if delta.result is not None:
                results[delta.request_id] = delta.result
    return results


@pytest.mark.parametrize("seed", SEEDS)
def test_a_long_trace(
    seed: int, tiny_engine: Callable[..., Engine], random_expert: Callable[..., Expert]
) -> None:
    """Arrivals, cancellations, preemption, hot loads, and more experts than slots."""
    engines = [tiny_engine(**TIGHT), tiny_engine(device="reference", **TIGHT)]
    shapes = engines[0].model.config.adapted_shapes()
    experts = [random_expert(shapes, seed=10 + index) for index in range(4)]
    wanted, given = (drive(engine, experts, seed) for engine in engines)
    assert all(engine.stats().preemptions > 0 for engine in engines)
    assert given.keys() == wanted.keys()
    for request_id, result in given.items():
        known = min(len(result.token_ids), len(wanted[request_id].token_ids))
        if "cancelled" not in (result.finish_reason, wanted[request_id].finish_reason):
            assert essence(result) == essence(wanted[request_id])
        assert result.token_ids[:known] == wanted[request_id].token_ids[:known]


def copies_at_once(patch: pytest.MonkeyPatch) -> None:
    """Blocks are copied under a step in flight, which still writes for the owner before."""
    whole = KVCache.__init__
    patch.setattr(KVCache, "__init__", lambda *a, **k: whole(*a, **(k | {"submit": at_once})))


def padding_is_read(patch: pytest.MonkeyPatch) -> None:
    """Rows that fill up a bucket are rows of the first sequence."""
    patch.setitem(step_input._PADDING, "position", 0)


def stale_places(patch: pytest.MonkeyPatch) -> None:
    """A token in flight is looked for where it was a step ago."""
    whole = step_input._with_places

    def stale(chunks: Any, arrays: Any, places: dict[int, int]) -> Any:
        return whole(chunks, arrays, {key: max(0, place - 1) for key, place in places.items()})

    patch.setattr(step_input, "_with_places", stale)


def one_host_buffer(patch: pytest.MonkeyPatch) -> None:
    """The input of a step is overwritten by the next one's before the device has read it."""
    buffers: dict[int, Any] = {}
    fresh = ReferenceBackend.host_buffer
    patch.setattr(
        ReferenceBackend, "host_buffer", lambda self, size: buffers.setdefault(size, fresh(self, size))
    )


def draws_at_the_known_length(patch: pytest.MonkeyPatch) -> None:
    """Tokens in flight do not count for the index of a draw."""
    patch.setattr(Chunk, "num_generated", property(lambda chunk: chunk.sequence.num_generated))


MISTAKES = [
    copies_at_once,
    padding_is_read,
    stale_places,
    one_host_buffer,
    draws_at_the_known_length,
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_planted_mistakes_show(
    mistake: Callable[[pytest.MonkeyPatch], None],
    tiny_engine: Callable[..., Engine],
    random_expert: Callable[..., Expert],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engines = [tiny_engine(**TIGHT) for _ in SEEDS]
    shapes = engines[0].model.config.adapted_shapes()
    experts = [random_expert(shapes, seed=10 + index) for index in range(4)]
    wanted = [drive(engine, experts, seed) for engine, seed in zip(engines, SEEDS, strict=True)]
    mistake(monkeypatch)
    for seed in SEEDS:
        try:
            given = drive(tiny_engine(device="reference", **TIGHT), experts, seed)
        except IndexError:
            return
        for request_id, result in given.items():
            known = wanted[seed][request_id]
            if "cancelled" not in (result.finish_reason, known.finish_reason) and essence(result) != essence(
                known
            ):
                return
    pytest.fail("no trace shows it")
