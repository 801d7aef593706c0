"""What does it cost to describe an expert in place of naming it?"""

import argparse
import random
from collections.abc import Callable, Iterator, Sequence

from zweave.describe.generator_file import TrainedGenerator
from zweave.describe.tasks import hidden_tasks
from zweave.engine import Engine
from zweave.errors import ZweaveError
from zweave.request import Description, Request

from ..harness.harness import Outcome, Provider, find, measure, per_second
from ..harness.options import pace
from ..harness.report import Column, Report, Row
from .workload import Workload

EXPERT, FIRST, BATCH = "expert", "first token", "batch"
COLUMNS = (
    Column("provider", "provider"),
    Column("state", "its description is"),
    Column("descriptions", "descriptions", "d"),
    Column("seconds", "ms", ".1f", 1e3),
    Column("later", "ms later", ".1f", 1e3),
    Column("tok_s", "new tokens/s", ".1f"),
)


def run(args: argparse.Namespace) -> Report:
    workload = Workload(args.requests, args.prompt, args.new)
    # Rounds that repeat their prompts would find them in a prefix cache.
    engine = Engine(args.model, dtype=args.dtype, prefix_cache=False, slots=args.requests)
    engine.load_generator(args.generator)
    bench = _Descriptions(engine, workload, _distinct(TrainedGenerator.load(args.generator).known_tasks))
    outcomes = measure(list(bench.providers()), pace(args))
    one = {name: find(outcomes, name, descriptions=1, state="known") for name in (FIRST, BATCH)}
    rows = [
        outcome.row() | _figures(outcome, workload, one.get(outcome.provider.name)) for outcome in outcomes
    ]
    title = (
        f"{args.requests} requests, {args.prompt} + {args.new} tokens, {args.dtype}, medians of runs in turn"
    )
    return Report("descriptions", title, COLUMNS, rows)


class _Descriptions:
    """The work that is timed, and its check: that a description answers as its expert under a name does."""

    def __init__(self, engine: Engine, workload: Workload, texts: Iterator[str]) -> None:
        self._engine, self._workload, self._texts = engine, workload, texts
        self._prompts = workload.prompts(engine.model.config)
        self._known = [next(self._texts) for _ in range(workload.requests)]
        engine.load_expert("named", engine.describe(self._known[0]))

    def providers(self) -> Sequence[Provider]:
        engine, requests = self._engine, self._workload.requests
        kinds: list[tuple[str, str, int, Callable[[], object]]] = [
            (EXPERT, "new", 1, lambda: engine.load_description(self._new())),
            (FIRST, "known", 1, lambda: self._answers(self._known[:1], new=1)),
            (FIRST, "new", 1, lambda: self._answers([self._new()], new=1)),
            (BATCH, "known", 1, lambda: self._answers(self._known[:1] * requests)),
            (BATCH, "known", requests, lambda: self._answers(self._known)),
            (BATCH, "new", requests, lambda: self._answers([self._new() for _ in range(requests)])),
        ]
        return [
            Provider(name, [call], self._error, 0.0, labels={"state": state, "descriptions": descriptions})
            for name, state, descriptions, call in kinds
        ]

    def _new(self) -> str:
        return next(self._texts)

    def _answers(self, texts: Sequence[str], new: int | None = None) -> list[list[int]]:
        requests = [
            Request(prompt, expert=Description(text), max_tokens=new or self._workload.new, ignore_eos=True)
            for text, prompt in zip(texts, self._prompts, strict=False)
        ]
        return [result.token_ids for result in self._engine.generate(requests)]

    def _error(self) -> float:
        named = Request(self._prompts[0], expert="named", max_tokens=self._workload.new, ignore_eos=True)
        return float(self._answers(self._known[:1]) != [self._engine.generate(named)[0].token_ids])


def _distinct(names: Sequence[str]) -> Iterator[str]:
    """Descriptions of known tasks, none twice: of anything else a generator may say that it is too far."""
    known = [task for task in hidden_tasks() if task.name in set(names)]
    if not known:
        raise ZweaveError("the generator knows none of the hidden tasks that there are: train it again")
    rng, told = random.Random(0), set[str]()
    while True:
        text = rng.choice(known).describe(rng)
        if text not in told:
            told.add(text)
            yield text


def _figures(outcome: Outcome, workload: Workload, one: Outcome | None) -> Row:
    """Of a batch its rate, of a first token how much later it comes than under a description that is known."""
    if outcome.provider.name == BATCH:
        return {"tok_s": per_second(workload.new_tokens, outcome)}
    if outcome.provider.name == FIRST and outcome.seconds and one and one.seconds:
        return {"later": outcome.seconds - one.seconds}
    return {}
