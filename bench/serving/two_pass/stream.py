"""A stream of several tasks' held-out prompts without named experts, against the same with the right ones named."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from statistics import fmean

from zweave.dispatch import Dispatcher
from zweave.dispatch.train_classifier import train_classifier
from zweave.engine import Engine
from zweave.errors import ZweaveError
from zweave.options.engine_options import load_named
from zweave.request import Request, Result
from zweave.tasks import Sample, Task, prompt_ids, resolve_task, which_task

from ...harness.harness import Outcome, Pace, Provider, find, measure, per_second, ratio
from ...harness.report import Row
from .strategies import NAMED, TASKS, as_prompt, computed_twice, dispatchers

# Scopes of the bundled experts.
REUSES = ("after_prompt", "always")
# Training prompts of the classifier, all tasks together.
SHOTS = 150
# Answers of a strategy that are checked one by one.
CHECKED = 24


@dataclass(frozen=True, slots=True)
class Arrival:
    """A prompt of the stream.

    task: index among TASKS.
    """

    task: int
    sample: Sample
    tokens: list[int]


def serve(engine: Engine, requests: Sequence[Request], in_flight: int) -> list[Result]:
    """Answers requests, at most `in_flight` at once: one arrives whenever one ends."""
    waiting = iter(enumerate(requests))
    under_way: dict[int, int] = {}
    results: dict[int, Result] = {}
    while len(results) < len(requests):
        for index, request in islice(waiting, in_flight - len(under_way)):
            under_way[engine.add(request)] = index
        for delta in engine.step():
            if delta.result is not None:
                results[under_way.pop(delta.request_id)] = delta.result
    return [results[index] for index in range(len(requests))]


def experts_of(engine: Engine, reuse: str) -> list[str]:
    """Names of the tasks' experts, loaded."""
    names = [task if reuse == "always" else f"{task}-after-prompt" for task in TASKS]
    load_named(engine, names)
    return names


class Stream:
    """Serves the stream.

    samples: of each task.
    in_flight: requests at once.
    new: tokens of an answer, whatever they say; None for as many as the task wants.
    Raises ZweaveError as the tasks do.
    """

    def __init__(self, data: Path | None, samples: int, in_flight: int, new: int | None) -> None:
        self._tasks: list[Task] = [resolve_task(name) for name in TASKS]
        self._samples = [task.samples("test", data)[:samples] for task in self._tasks]
        self._data, self._in_flight, self._new = data, in_flight, new
        self._runs = count()
        self._twice: dict[tuple[str, str], float] = {}
        self._accuracy: dict[tuple[str, str], float] = {}

    def rows(self, engine: Engine, layer: int, pace: Pace) -> list[Row]:
        self._engine = engine
        self._arrivals = self._shuffled(engine)
        classifier, _ = train_classifier(engine, which_task(self._tasks), self._data, [layer], SHOTS)
        providers = []
        for reuse in REUSES:
            experts = experts_of(engine, reuse)
            by_strategy: Mapping[str, Dispatcher] = dispatchers(engine, classifier, experts)
            for strategy in (NAMED, *by_strategy):
                providers.append(self._provider(reuse, strategy, experts, by_strategy.get(strategy)))
        outcomes = measure(providers, pace)
        return [self._row(outcome, outcomes) for outcome in outcomes]

    def _shuffled(self, engine: Engine) -> list[Arrival]:
        found = [
            Arrival(index, sample, prompt_ids(engine.tokenizer, sample.prompt))
            for index, samples in enumerate(self._samples)
            for sample in samples
        ]
        random.Random(0).shuffle(found)
        return found

    def _provider(
        self, reuse: str, strategy: str, experts: Sequence[str], dispatcher: Dispatcher | None
    ) -> Provider:
        requests = partial(self._requests, experts, dispatcher)

        def call() -> object:
            # Runs share no cache with each other; the requests of one run do.
            return serve(self._engine, requests(f"run {next(self._runs)}"), self._in_flight)

        labels: dict[str, object] = {
            "strategy": strategy,
            "reuse": reuse,
            "prompt_tokens": fmean(len(arrival.tokens) for arrival in self._arrivals),
            "requests": len(self._arrivals),
        }

        def error() -> float:
            results = serve(self._engine, requests(f"run {next(self._runs)}"), self._in_flight)
            self._note((reuse, strategy), results, dispatcher)
            return self._differing(results)

        return Provider(strategy, [call], error, 0.0, labels=labels)

    def _requests(
        self, experts: Sequence[str], dispatcher: Dispatcher | None, salt: str | None
    ) -> list[Request]:
        return [
            Request(
                arrival.tokens,
                expert=experts[arrival.task] if dispatcher is None else "auto",
                dispatcher=dispatcher,
                max_tokens=self._new or self._tasks[arrival.task].max_tokens,
                ignore_eos=self._new is not None,
                salt=salt,
            )
            for arrival in self._arrivals
        ]

    def _note(self, key: tuple[str, str], results: Sequence[Result], dispatcher: Dispatcher | None) -> None:
        """Records how often the answers are right, and how many tokens of a prompt were computed twice."""
        failed = [result.error for result in results if result.error]
        if failed:
            raise ZweaveError(f"a request of the stream ends in an error: {failed[0]}")
        right = []
        twice = []
        for arrival, result in zip(self._arrivals, results, strict=True):
            task = self._tasks[arrival.task]
            text = self._engine.tokenizer.decode(self._answer(task, result.token_ids))
            right.append(task.reward(arrival.sample, text) > 0)
            if dispatcher is not None:
                twice.append(computed_twice(dispatcher, as_prompt(self._engine, arrival.tokens), result))
        self._accuracy[key] = fmean(right)
        self._twice[key] = fmean(twice) if twice else 0.0

    def _answer(self, task: Task, token_ids: Sequence[int]) -> list[int]:
        """The part of an answer that the task's own limits would have given."""
        found = list(token_ids[: task.max_tokens])
        end = next(
            (i for i, token in enumerate(found) if token in self._engine.tokenizer.eos_ids), len(found)
        )
        return found[:end]

    def _differing(self, results: Sequence[Result]) -> float:
        """Share of the first answers that differ from those computed one by one under the same, named experts."""
        salt = f"run {next(self._runs)}"
        pairs = list(islice(zip(self._arrivals, results, strict=True), CHECKED))
        requests = [
            Request(
                arrival.tokens,
                expert=result.expert,
                max_tokens=self._new or self._tasks[arrival.task].max_tokens,
                ignore_eos=self._new is not None,
                salt=salt,
            )
            for arrival, result in pairs
        ]
        named = serve(self._engine, requests, in_flight=1)
        wrong = sum(one.token_ids != other.token_ids for (_, one), other in zip(pairs, named, strict=True))
        return wrong / len(pairs)

    def _row(self, outcome: Outcome, outcomes: Sequence[Outcome]) -> Row:
        reuse, strategy = str(outcome.provider.labels["reuse"]), outcome.provider.name
        named = find(outcomes, NAMED, reuse=reuse)
        slower = ratio(outcome, named)
        return outcome.row() | {
            "second_pass_seconds": None if named is None else named.seconds,
            "first_pass_share": None if slower is None else slower - 1,
            "oracle_ratio": None if slower is None else 1 / slower,
            "requests_s": per_second(len(self._arrivals), outcome),
            "prompt_tokens_recomputed": self._twice.get((reuse, strategy)),
            "accuracy": self._accuracy.get((reuse, strategy)),
            "oracle_accuracy": self._accuracy.get((reuse, NAMED)),
        }
