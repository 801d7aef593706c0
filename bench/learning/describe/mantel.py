"""Correlation of two similarities over the pairs of some things, and how often chance gives as much."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Correlation:
    """Pearson's and Spearman's coefficients.

    p: share of the permutations whose Spearman coefficient is at least as large, the given order among them.
    """

    pearson: float
    spearman: float
    p: float


def mantel(one: Matrix, other: Matrix, permutations: int = 2000, seed: int = 0) -> Correlation:
    """Mantel's test: the pairs are not independent, so things are permuted and not pairs.

    one, other: symmetric [n, n]; the diagonal does not count.
    """
    rows, columns = np.triu_indices(len(one), 1)
    ranks = np.zeros_like(other)
    ranks[rows, columns] = rankdata(other[rows, columns])
    ranks += ranks.T
    ranked = _standard(rankdata(one[rows, columns]))
    spearman = _mean_product(ranked, ranks[rows, columns])
    rng, above = np.random.default_rng(seed), 1
    for _ in range(permutations):
        order = rng.permutation(len(one))
        above += _mean_product(ranked, ranks[order[rows], order[columns]]) >= spearman
    pearson = _mean_product(_standard(one[rows, columns]), other[rows, columns])
    return Correlation(pearson, spearman, above / (permutations + 1))


def _standard(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return (values - values.mean()) / values.std()


def _mean_product(standard: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> float:
    return float((standard * _standard(values)).mean())
