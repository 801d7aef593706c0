"""Cross-entropy method: a normal distribution is fitted, generation by generation, to its best samples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import ZweaveError

Vector = NDArray[np.float64]
# Compared by the first number, then by the second.
Fitness = tuple[float, float]


@dataclass(frozen=True, slots=True)
class CemConfig:
    """The parameters of a search.

    population: candidates of a generation.
    elites: share of them that the next distribution is fitted to.
    generations: how many.
    low, high: bounds of every coordinate.
    smoothing: weight of the old distribution in the next, 0 for none.
    seed: of all draws.
    """

    population: int = 32
    elites: float = 0.2
    generations: int = 8
    low: float = 0.0
    high: float = 1.0
    smoothing: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.generations < 1:
            raise ZweaveError(f"generations must be 1 or more, not {self.generations}")
        if not 0 < self.elites <= 1:
            raise ZweaveError(f"elites must be above 0 and at most 1, not {self.elites}")
        if self.num_elites < 2:
            least = math.ceil(2 / self.elites)
            raise ZweaveError(
                f"population {self.population} is too small: the best {self.elites:.0%} of it must be two candidates "
                f"or more, make it {least} at least"
            )
        if not (self.low < self.high and 0 <= self.smoothing < 1):
            raise ZweaveError("low must be below high, and smoothing from 0 to less than 1")

    @property
    def num_elites(self) -> int:
        return int(self.elites * self.population)


class Cem:
    """`ask` for candidates and `tell` how fit they are, in turn.

    The best candidate so far is the first of every later generation, so that only a better one replaces it.

    start: mean of the first distribution, whose deviation is half the range.
    guesses: candidates of the first generation beside the mean.
    """

    def __init__(self, config: CemConfig, start: Vector, guesses: Sequence[Vector] = ()) -> None:
        if len(guesses) >= config.population:
            raise ZweaveError(
                f"a population of {config.population} cannot hold {len(guesses)} guesses: raise it"
            )
        self._config = config
        self._rng = np.random.default_rng(config.seed)
        self._mean = start.astype(np.float64)
        self._deviation = np.full(len(start), (config.high - config.low) / 2)
        self._fixed = [self._mean, *guesses]
        self._asked = np.empty((0, len(start)))
        self.best = self._mean
        self.best_fitness: Fitness = (-np.inf, -np.inf)

    def ask(self) -> Vector:
        """Candidates [population, coordinates] within the bounds."""
        size = (self._config.population, len(self._mean))
        drawn = self._mean + self._deviation * self._rng.standard_normal(size)
        drawn[: len(self._fixed)] = self._fixed
        self._asked = drawn.clip(self._config.low, self._config.high)
        return self._asked

    def tell(self, fitness: Sequence[Fitness]) -> None:
        """Takes the fitness of the candidates asked last, in their order; of equals the first is the best."""
        order = sorted(range(len(self._asked)), key=lambda index: fitness[index], reverse=True)
        if fitness[order[0]] > self.best_fitness:
            self.best, self.best_fitness = self._asked[order[0]].copy(), fitness[order[0]]
        elites = self._asked[order[: self._config.num_elites]]
        old = self._config.smoothing
        self._mean = old * self._mean + (1 - old) * elites.mean(axis=0)
        self._deviation = old * self._deviation + (1 - old) * elites.std(axis=0, ddof=1)
        self._fixed = [self.best]
