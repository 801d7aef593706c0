"""Few-shot adaptation (Transformer², section 3.2): weights of known experts that answer a few samples best.

The cross-entropy method searches the weights. A whole population answers as one mixed batch: each candidate is a row
of the bank, and no weight matrix is rebuilt. Fitness is the share of right answers. Among a few samples most candidates
tie; between equals the mean log-likelihood of being right and wrong as they were decides: log p of a right answer,
log (1 - p) of a wrong one. The reference implementation looks at the right answers alone.

Of a hundred mixtures the one that answers some samples best owes it mostly to chance. So it has to gain more than a
standard error on the best expert alone, or that expert is what is found.
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

# What an answer's log-probability counts as at most where the answer is wrong: log (1 - p) stays finite.
CERTAIN = -1e-9


@dataclass(frozen=True, slots=True)
class Weighting:
    """What a vector of the search means: weights of experts, global or one a layer.

    layers: of the model for a weight a layer, 1 for global weights.
    normalised: the experts' weights add up to 1 in each layer, as they do at the search's start.
    """

    names: tuple[str, ...]
    layers: int = 1
    normalised: bool = True

    def __post_init__(self) -> None:
        if len(self.names) < 2 or len(set(self.names)) != len(self.names):
            raise ZweaveError("a search takes two experts or more, all different")

    def weights(self, vector: Vector) -> Vector:
        """[experts, layers]; experts whose weights are all 0 in a layer count alike where they must add up to 1."""
        weights = vector.reshape(len(self.names), self.layers)
        if not self.normalised:
            return weights
        whole = weights.sum(axis=0)
        shares: Vector = np.where(whole > 1e-9, weights / np.where(whole > 1e-9, whole, 1), 1 / len(weights))
        return shares

    def mixture(self, vector: Vector) -> dict[str, float | tuple[float, ...]]:
        """As a request's `expert` takes it."""
        rows = self.weights(vector).tolist()
        return {
            name: tuple(row) if self.layers > 1 else row[0]
            for name, row in zip(self.names, rows, strict=True)
        }

    def uniform(self) -> Vector:
        return np.full(len(self.names) * self.layers, 1 / len(self.names))

    def singles(self) -> list[Vector]:
        """Each expert alone."""
        return [np.repeat(row, self.layers) for row in np.eye(len(self.names))]


@dataclass(frozen=True, slots=True)
class Generation:
    """share: of the shots that the best candidate so far answers rightly; log_likelihood: see the module;
    mean_share: over the population.
    """

    number: int
    share: float
    log_likelihood: float
    mean_share: float


@dataclass(frozen=True, slots=True)
class Found:
    """What to answer with, its share of right answers among the shots, and each expert's own.

    searched: share of the best mixture that was searched, at least `share`. Where it does not gain more than a standard
        error on the best expert alone, `mixture` is that expert.
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
    """Searches the weights of loaded experts. The first generation holds their mean and each expert alone, so what is
    found answers the shots at least as well as any of them.

    Raises ZweaveError as the engine, the bank and the task do.
    """
    alone = weighting.singles()
    cem = Cem(config, weighting.uniform(), alone)
    singles: list[Fitness] = []
    for number in range(config.generations):
        choices = [weighting.mixture(vector) for vector in cem.ask()]
        # The best so far stands first among them, and answers as it did.
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
    """(share of right answers, mean log-likelihood) of each choice; all answer as one batch."""
    together = answer_together(engine, task, shots, choices, logprobs=0)
    return [_fitness(task, shots, results) for results in together]


def _fitness(task: Task, shots: Sequence[Sample], results: Sequence[Result]) -> Fitness:
    right = [task.reward(shot, result.text) > 0 for shot, result in zip(shots, results, strict=True)]
    likelihoods = [_likelihood(*pair) for pair in zip(right, results, strict=True)]
    return sum(right) / len(shots), statistics.fmean(likelihoods)


def _likelihood(is_right: bool, result: Result) -> float:
    """Log of the probability p of the answer if it is right, of 1 - p if not."""
    answer = sum(token.logprob for token in result.logprobs or ())
    return answer if is_right else math.log1p(-math.exp(min(answer, CERTAIN)))
