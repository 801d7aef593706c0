"""Requests of every kind at once: in little room they give the same bits as in much room without a prefix cache."""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from zweave import Engine, Request, Result, Sampling

TinyEngine = Callable[..., Engine]
CHOICES: list[Any] = [None, "a", "b", "late", {"a": 0.5, "b": 0.5}, {"late": 0.7}]


def traffic(seed: int) -> list[tuple[Request, dict[int, Any]]]:
    """Requests, each with the mixtures that it changes to and the number of its tokens then."""
    random = Random(seed)
    trunk = [random.randrange(3, 90) for _ in range(40)]
    drawn = []
    for index in range(30):
        temperature = random.choice([0.0, 0.8])
        request = Request(
            [*trunk[: random.randrange(1, 30)], random.randrange(3, 90)],
            expert=random.choice(CHOICES),
            n=random.choice([1, 1, 3]) if temperature else 1,
            max_tokens=random.randrange(2, 16),
            ignore_eos=True,
            priority=random.choice([0, 0, 1]),
            sampling=Sampling(
                temperature=temperature, seed=index, frequency_penalty=random.choice([0.0, 0.0, 1.0])
            ),
            logprobs=1,
            prompt_logprobs=random.choice([None, None, 1]),
        )
        # Where several answers are at the same number of tokens depends on what shares the batch.
        num_changes = random.randrange(4) if request.n == 1 else 0
        drawn.append((request, {random.randrange(10): random.choice(CHOICES) for _ in range(num_changes)}))
    return drawn


def drive(engine: Engine, seed: int) -> dict[tuple[int, int], Result]:
    """The result of each answer."""
    changes = {engine.add(request): changes for request, changes in traffic(seed)}
    counts, results = dict.fromkeys(changes, 0), {}
    while engine.has_work:
        for request_id, left in changes.items():
            if counts[request_id] in left:
                engine.rescale(request_id, left.pop(counts[request_id]))
        for delta in engine.step():
            counts[delta.request_id] += len(delta.token_ids)
            if delta.result is not None:
                results[delta.request_id, delta.sample] = delta.result
    return results


@pytest.mark.parametrize("seed", range(2))
def test_little_room_changes_nothing(seed: int, tiny_engine: TinyEngine) -> None:
    wanted = drive(tiny_engine(kv_tokens=2048, prefix_cache=False), seed)
    cramped = tiny_engine(kv_tokens=72, slots=2, max_batch_tokens=24, max_sequences=9)
    assert drive(cramped, seed) == wanted
    assert all(result.finish_reason == "length" for result in wanted.values())
    assert cramped.stats().preemptions > 0
    assert cramped.stats().blocks_in_use == 0 and not cramped.bank._ref_counts
