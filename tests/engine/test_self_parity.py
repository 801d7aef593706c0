"""Greedy answers do not depend on what shares their batches: the share that repeats, the self-parity, is 1.000."""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from zweave import Engine, Request

CHOICES: list[Any] = [None, "a", "b", "late", {"a": 0.5, "b": 0.25}]
PROMPT = [5, 9, 40, 41, 7, 3, 11, 60]


def asked(prompt: list[int], choice: Any) -> Request:
    return Request(prompt, expert=choice, max_tokens=24, ignore_eos=True, logprobs=1)


def others(random: Random) -> list[Request]:
    prompts = [[random.randrange(3, 90) for _ in range(random.randrange(1, 40))] for _ in range(16)]
    return [asked(prompt, random.choice(CHOICES)) for prompt in prompts[: random.randrange(1, 16)]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_prompt_alone_and_in_many_batches(dtype: str, tiny_engine: Callable[..., Engine]) -> None:
    random = Random(0)
    engine = tiny_engine(dtype=dtype, kv_tokens=2048, max_batch_tokens=64)
    watched = [asked(PROMPT, choice) for choice in CHOICES]
    alone = [engine.generate(request)[0] for request in watched]
    assert len({tuple(result.token_ids) for result in alone}) == len(CHOICES)
    repeated = []
    for _ in range(6):
        batch = [*watched, *others(random)]
        order = random.sample(range(len(batch)), len(batch))
        results = engine.generate([batch[index] for index in order])
        for index, result in zip(order, results, strict=True):
            if index < len(watched):
                known = alone[index]
                repeated.append((result.token_ids, result.logprobs) == (known.token_ids, known.logprobs))
    assert sum(repeated) / len(repeated) == 1.0
