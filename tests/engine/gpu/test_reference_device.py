"""The GPU engine on a CPU, with references in the place of kernels: what the CPU engine gives, token for token."""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from zweave.engine import Engine
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
