"""Checks providers, runs them in turn and takes medians: what every bench shares."""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Run: TypeAlias = Callable[[], object]
Clock: TypeAlias = Callable[[], float]
Status: TypeAlias = Literal["ok", "wrong", "failed"]

# Largest error of a row of outputs, see `row_error`. Rounding of weights, intermediates and outputs adds up to
# .0025 in bfloat16; one of 14336 components left out gives .008.
ERROR_LIMITS = {torch.bfloat16: 5e-3, torch.float16: 1e-3, torch.float32: 1e-4}


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a case is timed: at most `rounds`, and no new one after `seconds`, but at least `at_least`."""

    rounds: int = 15
    seconds: float = float("inf")
    at_least: int = 3
    warmup: int = 1

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.at_least < 1 or self.warmup < 0 or not self.seconds > 0:
            raise ValueError(f"a pace needs rounds and seconds above 0, not {self}")


@dataclass(frozen=True, slots=True)
class Provider:
    """An implementation of the work that a bench measures.

    name: as tables and JSON rows show it.
    calls: the work, once with each copy of its weights; a copy is cold when its turn comes again.
    error: the distance of its output from the truth, computed before anything is timed.
    limit: the largest error that counts as rounding.
    share: how much of the work a call does, where the whole would take too long.
    labels: further keys of its JSON row.
    moved: bytes that the whole work moves.
    flops: operations of the whole work.
    """

    name: str
    calls: Sequence[Run]
    error: Callable[[], float]
    limit: float
    share: float = 1.0
    labels: dict[str, object] = field(default_factory=dict)
    moved: float = 0.0
    flops: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was measured of a provider.

    error: of its output, None if it failed.
    seconds: median time of the whole work, None unless the output was right.
    rounds: readings that the median is of.
    fastest, slowest: of these.
    note: why there is no time.
    """

    provider: Provider
    status: Status
    error: float | None
    seconds: float | None
    rounds: int = 0
    note: str = ""
    fastest: float | None = None
    slowest: float | None = None

    def row(self) -> dict[str, object]:
        """The keys that the JSON rows of all benches share."""
        row: dict[str, object] = {"provider": self.provider.name, "status": self.status}
        row |= self.provider.labels | {"error": self.error, "seconds": self.seconds, "rounds": self.rounds}
        if self.rounds > 1:
            row |= {"fastest": self.fastest, "slowest": self.slowest}
        return row | ({"note": self.note} if self.note else {})


def wall_time(run: Run) -> float:
    """Seconds of one run on the CPU."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


class WallClock:
    """Seconds of a call on the CPU. A reading continues with the copy after the last one's.

    per_reading: calls of a reading; by default as many as fill `target` seconds, at most one for each copy.
    """

    def __init__(self, calls: Sequence[Run], per_reading: int | None = None, target: float = 4e-3) -> None:
        self._calls = calls
        self._next = 0
        self.per_reading = per_reading or self._fit(target)

    def _fit(self, target: float) -> int:
        if len(self._calls) == 1:
            return 1
        seconds = min(wall_time(call) for call in self._calls[:3])
        return max(1, min(len(self._calls), round(target / max(seconds, 1e-9))))

    def __call__(self) -> float:
        return wall_time(self._run) / self.per_reading

    def _run(self) -> None:
        for _ in range(self.per_reading):
            self._calls[self._next]()
            self._next = (self._next + 1) % len(self._calls)


def measure(
    providers: Sequence[Provider], pace: Pace, make_clock: Callable[[Sequence[Run]], Clock] = WallClock
) -> list[Outcome]:
    """Checks every provider, then times those whose output is right, in turn; the others get no time."""
    outcomes = [check(provider) for provider in providers]
    clocks: dict[int, Clock] = {}
    for index, outcome in enumerate(outcomes):
        if outcome.status != "ok":
            continue
        try:
            clocks[index] = make_clock(outcome.provider.calls)
        except Exception as failure:
            outcomes[index] = _failed(outcome.provider, failure)
    times = interleaved(list(clocks.values()), pace)
    for index, seconds in zip(clocks, times, strict=True):
        provider, error = providers[index], outcomes[index].error
        if isinstance(seconds, Exception):
            outcomes[index] = _failed(provider, seconds)
            continue
        median = statistics.median(seconds) / provider.share
        outcomes[index] = Outcome(
            provider,
            "ok",
            error,
            median,
            rounds=len(seconds),
            fastest=min(seconds) / provider.share,
            slowest=max(seconds) / provider.share,
        )
    return outcomes


def check(provider: Provider) -> Outcome:
    """Whether a provider's output is right; nothing is timed."""
    try:
        error = float(provider.error())
    except Exception as failure:
        # The other providers are measured all the same; the command still ends in an error.
        return _failed(provider, failure)
    # Written so that NaN is wrong.
    if error <= provider.limit:
        return Outcome(provider, "ok", error, None)
    note = f"error {error:.2g} is above {provider.limit:.2g}"
    return Outcome(provider, "wrong", error if error < float("inf") else None, None, note=note)


def _failed(provider: Provider, failure: Exception) -> Outcome:
    reason = (str(failure).splitlines() or [""])[0]
    return Outcome(provider, "failed", None, None, note=f"{type(failure).__name__}: {reason}"[:200])


def interleaved(clocks: Sequence[Clock], pace: Pace) -> list[list[float] | Exception]:
    """The readings of each clock, or what it raised; a clock that raised is not read again.

    A round reads each clock once, so that all meet the same machine, in a new random order, so that none always follows
    the same neighbour: identical products differed by 4% behind different ones.
    """
    readings: list[list[float]] = [[] for _ in clocks]
    failures: dict[int, Exception] = {}
    order = list(range(len(clocks)))
    draw = random.Random(0)
    start = time.perf_counter()
    for index in range(pace.warmup + pace.rounds):
        done = index - pace.warmup
        if not clocks or (done >= pace.at_least and time.perf_counter() - start > pace.seconds):
            break
        draw.shuffle(order)
        for which in order:
            if which in failures:
                continue
            try:
                seconds = clocks[which]()
            except Exception as failure:
                failures[which] = failure
                continue
            if done >= 0:
                readings[which].append(seconds)
    return [failures.get(index, seconds) for index, seconds in enumerate(readings)]


def ratio(outcome: Outcome | None, base: Outcome | None) -> float | None:
    """Seconds of an outcome over those of another, None if either has none."""
    if outcome is None or base is None or outcome.seconds is None or base.seconds is None:
        return None
    return outcome.seconds / base.seconds


def per_second(amount: float, outcome: Outcome) -> float | None:
    """How much of an amount of work is done in a second, None without a time."""
    return amount / outcome.seconds if outcome.seconds else None


def find(outcomes: Sequence[Outcome], name: str, **labels: object) -> Outcome | None:
    """The outcome of a provider by its name and labels."""
    for outcome in outcomes:
        wanted = all(outcome.provider.labels.get(key) == value for key, value in labels.items())
        if outcome.provider.name == name and wanted:
            return outcome
    return None


def row_error(y: Tensor, truth: Tensor) -> float:
    """The worst row's distance from the truth, relative to that row's length; NaN and infinity are kept.

    Over rows instead of elements: a single component that was left out still shows.
    """
    if y.shape != truth.shape:
        raise ValueError(f"the output is {list(y.shape)}, not {list(truth.shape)}")
    if truth.numel() == 0:
        return 0.0
    distance = torch.linalg.vector_norm(y.double() - truth, dim=-1)
    return (distance / torch.linalg.vector_norm(truth, dim=-1).clamp(min=1e-30)).max().item()
