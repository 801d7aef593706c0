"""The GPU engine on a CPU, with references in the place of kernels: what the CPU engine gives, token for token."""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from zweave.engine import Engine
from zweave.experts import Expert
from zweave.request import Request, Result, Sampling

CHOICES: list[Any] = [None, "a", "b", "late", {"a": 0.5, "b": 0.25}]


def traffic(count: int, seed: int) -> list[Request]:
    """Requests whose prompts share beginnings, some sampled, some with log-probabilities."""
    random = Random(seed)
    trunk = [random.randrange(3, 90) for _ in range(60)]
    requests = []
    for index in range(count):
        prompt = trunk[: random.randrange(1, 50)] + [
            random.randrange(3, 90) for _ in range(random.randrange(6))
        ]
        sampling = Sampling(temperature=random.choice([0.0, 0.0, 0.7]), seed=index)
        requests.append(
            Request(
                prompt or [5],
                expert=random.choice(CHOICES),
                max_tokens=random.randrange(1, 12),
                sampling=sampling,
                logprobs=random.choice([None, None, 3]),
            )
        )
    return requests


def essence(result: Result) -> tuple[object, ...]:
    return result.token_ids, result.text, result.finish_reason


def test_a_mixed_batch(tiny_engine: Callable[..., Engine]) -> None:
    requests = traffic(24, seed=0)
    wanted = tiny_engine().generate(requests)
    given = tiny_engine(device="reference").generate(requests)
    assert [essence(result) for result in given] == [essence(result) for result in wanted]
    for one, other in zip(given, wanted, strict=True):
        for a, b in zip(one.logprobs or (), other.logprobs or (), strict=True):
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


@pytest.mark.parametrize("seed", range(3))
def test_a_long_trace(
    seed: int, tiny_engine: Callable[..., Engine], random_expert: Callable[..., Expert]
) -> None:
    """Arrivals, cancellations, preemption, hot loads, and more experts than slots."""
    options = {"kv_tokens": 120, "max_sequences": 9, "max_batch_tokens": 48, "slots": 3}
    engines = [tiny_engine(**options), tiny_engine(device="reference", **options)]
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
