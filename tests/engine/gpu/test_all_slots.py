"""The steps of a GPU with every slot in use: each request gets the tokens that it gets alone."""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from zweave import Engine, Expert, Request

SLOTS, NEW = 24, 42


@pytest.mark.slow
def test_all_slots_at_once(tiny_engine: Callable[..., Engine], random_expert: Callable[..., Expert]) -> None:
    """A thousand tokens under as many experts and mixtures as there are slots, and the base."""
    options = {"kv_tokens": 4096, "slots": SLOTS, "max_sequences": SLOTS + 1}
    engine = tiny_engine(device="reference", prefix_cache=False, **options)
    shapes = engine.model.config.adapted_shapes()
    choices: list[Any] = [None, {"a": 0.5, "b": 0.25}, {"late": 0.7}]
    for index in range(SLOTS - 2):
        engine.load_expert(f"e{index}", random_expert(shapes, seed=100 + index))
        choices.append(f"e{index}")
    random = Random(0)
    requests = [
        Request(
            [random.randrange(3, 90) for _ in range(random.randrange(1, 20))],
            expert=choice,
            max_tokens=NEW,
            ignore_eos=True,
        )
        for choice in choices
    ]
    wanted = [engine.generate(request)[0].token_ids for request in requests]
    in_use = set()
    ids = [engine.add(request) for request in requests]
    given: dict[int, list[int]] = {request_id: [] for request_id in ids}
    while engine.has_work:
        for delta in engine.step():
            given[delta.request_id] += delta.token_ids
        in_use.add(engine.bank.slots_in_use)
    assert max(in_use) == SLOTS
    assert sum(map(len, given.values())) == (SLOTS + 1) * NEW > 1000
    assert [given[request_id] for request_id in ids] == wanted
