"""Evaluates a dispatcher on a stream of several tasks' samples, beside the base model and an oracle."""

import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from uuid import uuid4

from ..engine.engine import Engine
from ..errors import ZweaveError
from ..experts.mixture import ExpertChoice
from ..request import Request, Result
from ..tasks import Sample, Task, answer_limit, prompt_ids
from .evaluate import Row, interval, standard_error
from .table import Cells

BASE, ORACLE, DISPATCHED, ALL = "base", "oracle", "dispatched", "all"


@dataclass(frozen=True, slots=True)
class Labelled:
    """A task's samples and the right expert for them."""

    task: Task
    samples: Sequence[Sample]
    expert: ExpertChoice


@dataclass(frozen=True, slots=True)
class DispatchReport:
    """The accuracy and the routing of a dispatcher.

    rows: base, oracle and dispatched, for each task and for all together.
    routing: how many samples of each task went to which expert.
    difference: accuracy of dispatched less that of oracle, over all samples.
    stderr: standard error of the difference, from the pairs.
    first_pass_tokens: tokens computed for the first pass alone, mean over the samples.
    """

    rows: list[Row]
    routing: dict[str, dict[str, int]]
    difference: float
    stderr: float
    first_pass_tokens: float


@dataclass(frozen=True, slots=True)
class _Arrival:
    of: Labelled
    sample: Sample
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class _Run:
    """The stream answered once.

    results: of each arrival.
    right: whether its reward is above 0.
    seconds: of the whole stream.
    """

    results: Sequence[Result]
    right: Sequence[bool]
    seconds: float


def evaluate_dispatch(
    engine: Engine, tasks: Sequence[Labelled], report: Callable[[str], None] = lambda _: None
) -> DispatchReport:
    """Answers all samples under the base model, the right experts, and those that the engine's dispatcher chooses.

    report: called with a line when a run begins.
    Raises ZweaveError for a request that ends in an error, and as the tasks do.
    """
    arrivals = [
        _Arrival(of, sample, prompt_ids(engine.tokenizer, sample.prompt))
        for of in tasks
        for sample in of.samples
    ]
    random.Random(0).shuffle(arrivals)
    choices: dict[str, Callable[[_Arrival], ExpertChoice]] = {
        BASE: lambda _: None,
        ORACLE: lambda arrival: arrival.of.expert,
        DISPATCHED: lambda _: "auto",
    }
    runs = {}
    for name, choice in choices.items():
        report(f"{len(arrivals)} samples of {len(tasks)} tasks in one stream: {name}")
        runs[name] = _run(engine, arrivals, choice)
    rows = [_row(of.task.name, name, arrivals, run, of) for of in tasks for name, run in runs.items()] + [
        _row(ALL, name, arrivals, run) for name, run in runs.items()
    ]
    dispatched = runs[DISPATCHED]
    pairs = [int(one) - int(other) for one, other in zip(dispatched.right, runs[ORACLE].right, strict=True)]
    return DispatchReport(
        rows=rows,
        routing=_routing(tasks, arrivals, dispatched.results),
        difference=statistics.fmean(pairs),
        stderr=math.sqrt(statistics.pvariance(pairs) / len(pairs)),
        first_pass_tokens=statistics.fmean(r.dispatch.tokens for r in dispatched.results if r.dispatch),
    )


def _run(engine: Engine, arrivals: Sequence[_Arrival], choice: Callable[[_Arrival], ExpertChoice]) -> _Run:
    limits = {
        arrival.of.task.name: answer_limit(engine.tokenizer, arrival.of.task)
        for arrival in {arrival.of.task.name: arrival for arrival in arrivals}.values()
    }
    start = time.perf_counter()
    # Of a salt of its own: no run finds in the cache what another has computed.
    salt = uuid4().hex
    results = engine.generate(
        Request(
            arrival.tokens,
            expert=choice(arrival),
            max_tokens=limits[arrival.of.task.name],
            stop=arrival.of.task.stop,
            salt=salt,
        )
        for arrival in arrivals
    )
    seconds = time.perf_counter() - start
    for arrival, result in zip(arrivals, results, strict=True):
        if result.error is not None:
            raise ZweaveError(f"a prompt of {arrival.of.task.name} cannot be answered: {result.error}")
    right = [
        arrival.of.task.reward(arrival.sample, result.text) > 0
        for arrival, result in zip(arrivals, results, strict=True)
    ]
    return _Run(results, right, seconds)


def _row(
    task: str, method: str, arrivals: Sequence[_Arrival], run: _Run, only: Labelled | None = None
) -> Row:
    """The row of a method; its seconds are the stream's, shared by tokens.

    only: the task's arrivals, None for all.
    """
    mine = [index for index, arrival in enumerate(arrivals) if only is None or arrival.of is only]
    tokens = [result.prompt_tokens + len(result.token_ids) for result in run.results]
    share = statistics.fmean(run.right[index] for index in mine)
    low, high = interval([share], len(mine))
    return Row(
        task=task,
        method=method,
        accuracy=share,
        stderr=standard_error([share], len(mine)),
        n=len(mine),
        runs=1,
        seconds=run.seconds * sum(tokens[index] for index in mine) / sum(tokens),
        low=low,
        high=high,
    )


def _routing(
    tasks: Sequence[Labelled], arrivals: Sequence[_Arrival], results: Sequence[Result]
) -> dict[str, dict[str, int]]:
    counts = {of.task.name: Counter[str]() for of in tasks}
    for arrival, result in zip(arrivals, results, strict=True):
        counts[arrival.of.task.name][_answered_by(result)] += 1
    names = sorted({name for count in counts.values() for name in count})
    return {task: {name: count[name] for name in names} for task, count in counts.items()}


def _answered_by(result: Result) -> str:
    """The name of the expert; for a mixture, which may differ from prompt to prompt, its label."""
    if result.expert is None:
        return BASE
    if isinstance(result.expert, str):
        return result.expert
    label = result.dispatch.label if result.dispatch else None
    return "a mixture" if label is None else f"a mixture, mostly for {label.strip()}"


def routing_cells(routing: Mapping[str, Mapping[str, int]]) -> Cells:
    """A line a task, a column an expert."""
    names = list(next(iter(routing.values())))
    return [
        ["task", *names],
        ["---", *["---:"] * len(names)],
        *([task, *(str(count) for count in counts.values())] for task, counts in routing.items()),
    ]
