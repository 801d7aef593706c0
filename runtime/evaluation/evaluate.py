"""Rows of a result table: the accuracy of each method, with its standard error."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..tasks import Sample, Task
from .method import ExpertMethod, Method, answer_together

# Standard deviations of a normal that hold 95% of it.
_Z = statistics.NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class Row:
    """One method on one task.

    accuracy: mean over the runs.
    stderr: of that mean, for the draw of samples and between runs.
    low, high: the 95% interval of that mean (`interval`).
    n: samples.
    runs: methods of that name, with different seeds.
    seconds: of all runs. Experts of one engine answer as one mixed batch: each has its share by tokens.
    parameters: trained for a run; None where that has no meaning.
    """

    task: str
    method: str
    accuracy: float
    stderr: float
    n: int
    runs: int
    seconds: float
    low: float
    high: float
    parameters: int | None = None


@dataclass(frozen=True, slots=True)
class _Run:
    name: str
    answers: list[str]
    seconds: float


def evaluate(
    task: Task,
    samples: Sequence[Sample],
    methods: Sequence[Method],
    report: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """One row for each name of a method, in the order of first mention.

    report: called with a line when a method begins.
    An answer is right if its reward is above 0. Raises ZweaveError as the task and the methods do.
    """
    together = [method for method in methods if isinstance(method, ExpertMethod)]
    if together:
        report(f"{task.name}: {len(samples)} samples under {len(together)} experts, one batch")
    runs = {
        id(method): run for method, run in zip(together, _answer_as_one(task, samples, together), strict=True)
    }
    for method in methods:
        if id(method) not in runs:
            report(f"{task.name}: {method.name}")
            start = time.perf_counter()
            answers = method.answers(task, samples)
            runs[id(method)] = _Run(method.name, answers, time.perf_counter() - start)
    by_name: dict[str, list[_Run]] = {}
    parameters: dict[str, int | None] = {}
    for method in methods:
        by_name.setdefault(method.name, []).append(runs[id(method)])
        parameters[method.name] = method.parameters
    return [_row(task, samples, name, some, parameters[name]) for name, some in by_name.items()]


def _answer_as_one(task: Task, samples: Sequence[Sample], methods: Sequence[ExpertMethod]) -> list[_Run]:
    if not methods:
        return []
    start = time.perf_counter()
    results = answer_together(methods[0].engine, task, samples, [method.choice for method in methods])
    seconds = time.perf_counter() - start
    tokens = [sum(result.prompt_tokens + len(result.token_ids) for result in part) for part in results]
    return [
        _Run(method.name, [result.text for result in part], seconds * count / sum(tokens))
        for method, part, count in zip(methods, results, tokens, strict=True)
    ]


def _row(
    task: Task, samples: Sequence[Sample], name: str, runs: Sequence[_Run], parameters: int | None
) -> Row:
    shares = [share_right(task, samples, run.answers) for run in runs]
    low, high = interval(shares, len(samples))
    return Row(
        task=task.name,
        method=name,
        accuracy=statistics.fmean(shares),
        stderr=standard_error(shares, len(samples)),
        n=len(samples),
        runs=len(runs),
        seconds=sum(run.seconds for run in runs),
        low=low,
        high=high,
        parameters=parameters,
    )


def share_right(task: Task, samples: Sequence[Sample], answers: Sequence[str]) -> float:
    """The share of the samples whose answer has a reward above 0."""
    rewards = [task.reward(sample, text) for sample, text in zip(samples, answers, strict=True)]
    return sum(reward > 0 for reward in rewards) / len(samples)


def standard_error(shares: Sequence[float], n: int) -> float:
    """Standard error of the mean accuracy of several runs on the same n samples.

    From the variance of the draw of samples, p (1 - p) / n, which more runs do not lessen, and that between runs.
    """
    mean = statistics.fmean(shares)
    return math.sqrt(mean * (1 - mean) / n + _between(shares))


def interval(shares: Sequence[float], n: int) -> tuple[float, float]:
    """The 95% interval of the mean accuracy of several runs on the same n samples, between 0 and 1.

    Wilson's for the draw of samples, which holds at 0 and 1, too, where the standard error is 0; each half is widened
    by the variance between runs (square-and-add; Newcombe 1998, Statistics in Medicine 17).
    """
    p = min(1.0, max(0.0, statistics.fmean(shares)))
    centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    runs = _Z * math.sqrt(_between(shares))
    low, high = p - math.hypot(p - centre + half, runs), p + math.hypot(centre + half - p, runs)
    return max(0.0, low), min(1.0, high)


def _between(shares: Sequence[float]) -> float:
    """The variance of the mean of runs, as it is seen between them."""
    return statistics.variance(shares) / len(shares) if len(shares) > 1 else 0.0
