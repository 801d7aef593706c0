"""Few-shot adaptation (Transformer², section 3.2): weights of known experts that answer a few samples best.

The cross-entropy method searches the weights. A whole population answers as one mixed batch: each candidate is a row
of the bank, and no weight matrix is rebuilt. Fitness is the share of right answers. On a few samples most candidates
tie; ties are broken by the mean log-likelihood of the outcomes: log p of a right answer, log (1 - p) of a wrong one.
The reference implementation counts the right answers alone.

Of a hundred mixtures the best on a few samples owes it mostly to chance. So it must gain more than a standard error
over the best single expert, or that expert is returned.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..engine.engine import Engine
from ..errors import ZweaveError
from ..evaluation import answer_together
from ..evaluation.evaluate import standard_error
from ..experts.mixture import ExpertChoice
from ..request import Result
from ..tasks import Sample, Task
from .cem import Cem, CemConfig, Fitness, Vector

# Upper bound of a wrong answer's log-probability: log (1 - p) stays finite.
CERTAIN = -1e-9


@dataclass(frozen=True, slots=True)
class Weighting:
    """How a vector of the search is read: as weights of experts, global or one for each layer.

    names: of the experts.
    layers: of the model for a weight for each layer, 1 for global weights.
    normalised: scale the experts' weights to a sum of 1 in each layer.
    """

    names: tuple[str, ...]
    layers: int = 1
    normalised: bool = True

    def __post_init__(self) -> None:
        if len(self.names) < 2 or len(set(self.names)) != len(self.names):
            raise ZweaveError("a search takes two experts or more, all different")

    def weights(self, vector: Vector) -> Vector:
        """Weights [experts, layers]; all equal in a layer where they are all 0 and must add up to 1."""
        weights = vector.reshape(len(self.names), self.layers)
        if not self.normalised:
            return weights
        whole = weights.sum(axis=0)
        shares: Vector = np.where(whole > 1e-9, weights / np.where(whole > 1e-9, whole, 1), 1 / len(weights))
        return shares

    def mixture(self, vector: Vector) -> dict[str, float | tuple[float, ...]]:
        """The weights as a request's `expert`."""
        rows = self.weights(vector).tolist()
        return {
            name: tuple(row) if self.layers > 1 else row[0]
            for name, row in zip(self.names, rows, strict=True)
        }

    def uniform(self) -> Vector:
        return np.full(len(self.names) * self.layers, 1 / len(self.names))

    def singles(self) -> list[Vector]:
        """The vectors of each expert alone."""
        return [np.repeat(row, self.layers) for row in np.eye(len(self.names))]


@dataclass(frozen=True, slots=True)
class Generation:
    """The state after a generation.

    share: share of the shots that the best candidate so far answers rightly.
    log_likelihood: of that candidate, see the module.
    mean_share: mean over the population.
    """

    number: int
    share: float
    log_likelihood: float
    mean_share: float


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a search.

    mixture: the best mixture, or the best expert alone if that gains no more than a standard error.
    weights: of the mixture, [experts, layers].
    share: share of the shots that it answers rightly.
    searched: share of the best mixture that was searched, at least `share`.
    singles: share of each expert alone.
    """

    mixture: dict[str, float | tuple[float, ...]]
    weights: Vector
    share: float
    searched: float
    singles: dict[str, float]


def search(
    engine: Engine,
    task: Task,
    shots: Sequence[Sample],
    weighting: Weighting,
    config: CemConfig,
    report: Callable[[Generation], None] = lambda _: None,
) -> Found:
    """Searches the weights of loaded experts.

    The first generation holds their mean and each expert alone, so that the result answers the shots at least as well
    as any of them.

    report: called after each generation.
    Raises ZweaveError as the engine, the bank and the task do.
    """
    alone = weighting.singles()
    cem = Cem(config, weighting.uniform(), alone)
    singles: list[Fitness] = []
    for number in range(config.generations):
        choices = [weighting.mixture(vector) for vector in cem.ask()]
        # After the first generation the first candidate is the best so far, whose fitness is known.
        known = [cem.best_fitness] if number else []
        fitness = known + population_fitness(engine, task, shots, choices[len(known) :])
        if number == 0:
            singles = fitness[1 : 1 + len(alone)]
        cem.tell(fitness)
        mean_share = statistics.fmean(share for share, _ in fitness)
        report(Generation(number + 1, *cem.best_fitness, mean_share))
    best = max(range(len(alone)), key=lambda index: singles[index])
    share, gain = singles[best][0], cem.best_fitness[0] - singles[best][0]
    vector = alone[best]
    if gain > standard_error([share], len(shots)):
        vector, share = cem.best, cem.best_fitness[0]
    shares = {name: own for name, (own, _) in zip(weighting.names, singles, strict=True)}
    return Found(weighting.mixture(vector), weighting.weights(vector), share, cem.best_fitness[0], shares)


def population_fitness(
    engine: Engine, task: Task, shots: Sequence[Sample], choices: Sequence[ExpertChoice]
) -> list[Fitness]:
    """The fitness of each choice, (share of right answers, mean log-likelihood); all answer as one batch."""
    together = answer_together(engine, task, shots, choices, logprobs=0)
    return [_fitness(task, shots, results) for results in together]


def _fitness(task: Task, shots: Sequence[Sample], results: Sequence[Result]) -> Fitness:
    right = [task.reward(shot, result.text) > 0 for shot, result in zip(shots, results, strict=True)]
    likelihoods = [_likelihood(*pair) for pair in zip(right, results, strict=True)]
    return sum(right) / len(shots), statistics.fmean(likelihoods)


def _likelihood(is_right: bool, result: Result) -> float:
    """log p of a right answer, log (1 - p) of a wrong one."""
    answer = sum(token.logprob for token in result.logprobs or ())
    return answer if is_right else math.log1p(-math.exp(min(answer, CERTAIN)))
