"""An engine that knows very many experts: what they cost while idle, and what the first request under one waits for."""

from collections.abc import Iterator
from itertools import cycle

import torch

from zweave.engine import Engine
from zweave.experts import Expert
from zweave.request import Request

from ..harness.harness import Provider
from .fixtures import Answers, Fixtures
from .workload import Workload

IDLE, FIRST = "zweave base", "first token"


def registered_providers(fixtures: Fixtures, workload: Workload, count: int) -> Iterator[Provider]:
    """Requests of the base model beside a few experts and beside `count`; first tokens under one of these.

    Each of these experts adapts one matrix. A slot is written for a request whose expert is not resident: from rows
    that are still prepared, or from its z.
    """
    quiet, crowded = fixtures.engine, fixtures.new_engine()
    names = [f"registered-{index}" for index in range(count)]
    for index, name in enumerate(names):
        crowded.load_expert(name, small_expert(fixtures, index))
    prompts = workload.prompts(fixtures.config)

    def regret(answers: Answers) -> float:
        return fixtures.regret(prompts, answers)

    for engine in (quiet, crowded):
        server = fixtures.engine_server(workload, engine=engine)
        yield fixtures.text_provider(IDLE, server, regret, experts=0, registered=len(engine.experts()))
    more = crowded.config.slots + 1
    for state, choice in (
        ("resident", names[-1:]),
        ("prepared", names[-1 - more : -1]),
        ("not prepared", names[: -1 - more]),
    ):
        if choice:
            request = FirstToken(crowded, prompts[0], choice)
            labels: dict[str, object] = {"experts": 1, "registered": count, "state": state}
            yield Provider(FIRST, [request], request.error, 0.0, labels=labels)


def small_expert(fixtures: Fixtures, seed: int) -> Expert:
    """An expert of the first matrix."""
    module, shape = next(iter(fixtures.config.adapted_shapes().items()))
    generator = torch.Generator().manual_seed(seed)
    return Expert({module: 1 + 0.2 * torch.randn(min(shape), generator=generator)})


class FirstToken:
    """A request of one new token, under the next of some experts at each call."""

    def __init__(self, engine: Engine, prompt: list[int], names: list[str]) -> None:
        self._engine = engine
        self._prompt = prompt
        self._first = names[0]
        self._names = cycle(names)

    def __call__(self) -> None:
        self._answer(next(self._names))

    def error(self) -> float:
        """0 if the same request gets the same token when its expert is resident, else 1."""
        return float(self._answer(self._first) != self._answer(self._first))

    def _answer(self, name: str) -> list[int]:
        request = Request(self._prompt, expert=name, max_tokens=1, ignore_eos=True)
        return self._engine.generate(request)[0].token_ids
