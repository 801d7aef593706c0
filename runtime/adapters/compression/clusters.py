"""Which adapters share a basis: clusters, where one basis is not enough.

Adapters begin in the clusters of k-means of their singular values over one basis. Then each goes to the basis that
fits it best, and the bases are fitted anew, until the error grows no smaller.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ...io.progress import Report
from ...names import CompressionVariant
from .diagonal import Diagonal
from .fit import Basis, fit
from .stack import Stack

_MAX_ROUNDS = 10
_LEAST_GAIN = 1e-3
_MAX_MEANS_ROUNDS = 50

# For each cluster the basis of each matrix that one of its adapters changes.
Bases = list[dict[str, Basis]]


def cluster(
    stacks: Mapping[str, Stack],
    variant: CompressionVariant,
    rank: int,
    clusters: int,
    seed: int,
    report: Report,
) -> tuple[Tensor, Bases]:
    """The cluster of each adapter [n], and the bases.

    stacks: by matrix, each of the same adapters.
    clusters: from 1 to the number of adapters; none is empty.
    """
    count = len(next(iter(stacks.values())))
    if clusters == 1:
        chosen = torch.zeros(count, dtype=torch.int64)
        return chosen, _fit_all(stacks, chosen, 1, variant, rank, seed, "fitting the basis", report)
    chosen = _means(_signatures(stacks, rank, seed, report), clusters, seed)
    best: tuple[float, Tensor, Bases] | None = None
    for step in range(_MAX_ROUNDS):
        stage = f"fitting {clusters} bases, round {step + 1}"
        bases = _fit_all(stacks, chosen, clusters, variant, rank, seed, stage, report)
        errors = _errors(stacks, bases)
        error = errors[torch.arange(count), chosen].sum().item()
        if best is not None and error > best[0] * (1 - _LEAST_GAIN):
            break
        best = error, chosen, bases
        moved = _filled(errors.argmin(1), errors)
        if torch.equal(moved, chosen):
            break
        chosen = moved
    assert best is not None
    return best[1], best[2]


def members(chosen: Tensor, number: int) -> list[int]:
    """The adapters of a cluster."""
    return (chosen == number).nonzero().flatten().tolist()


def _fit_all(
    stacks: Mapping[str, Stack],
    chosen: Tensor,
    clusters: int,
    variant: CompressionVariant,
    rank: int,
    seed: int,
    stage: str,
    report: Report,
) -> Bases:
    bases: Bases = [{} for _ in range(clusters)]
    for done, (module, stack) in enumerate(stacks.items()):
        report(stage, done, len(stacks))
        for number, basis in enumerate(bases):
            mine = stack.select(members(chosen, number))
            if len(mine.owner):
                basis[module] = fit(mine, variant, rank, seed)
    report(stage, len(stacks), len(stacks))
    return bases


def _errors(stacks: Mapping[str, Stack], bases: Bases) -> Tensor:
    """Sums of the squared relative errors of the matrices [n, clusters]."""
    columns = [
        sum(
            basis[module].squared_errors(stack) if module in basis else (stack.norms > 0).double()
            for module, stack in stacks.items()
        )
        for basis in bases
    ]
    return torch.stack([torch.as_tensor(column) for column in columns], 1)


def _signatures(stacks: Mapping[str, Stack], rank: int, seed: int, report: Report) -> Tensor:
    """The singular values of each adapter over one diagonal basis, all matrices in a row [n, ...]."""
    found = []
    for done, stack in enumerate(stacks.values()):
        report("fitting one basis", done, len(stacks))
        if len(stack.owner):
            basis = fit(stack, "diagonal", rank, seed)
            assert isinstance(basis, Diagonal)
            found.append(basis.coefficients(stack))
    return torch.nn.functional.normalize(torch.cat(found, 1), dim=1)


def _means(points: Tensor, clusters: int, seed: int) -> Tensor:
    """k-means from seeded centres far apart (k-means++); the cluster of each point."""
    generator = torch.Generator().manual_seed(seed)
    picked = [int(torch.randint(len(points), (), generator=generator))]
    while len(picked) < clusters:
        distances = torch.cdist(points, points[picked]).amin(1).square()
        distances[picked] = 0
        if not distances.any():
            # The rest are copies of those: any will do.
            picked.append(next(i for i in range(len(points)) if i not in picked))
        else:
            picked.append(int(torch.multinomial(distances, 1, generator=generator)))
    centres = points[picked]
    chosen = torch.full((len(points),), -1)
    for _ in range(_MAX_MEANS_ROUNDS):
        distances = torch.cdist(points, centres)
        moved = _filled(distances.argmin(1), distances)
        if torch.equal(moved, chosen):
            break
        chosen = moved
        centres = torch.stack([points[chosen == number].mean(0) for number in range(clusters)])
    return chosen


def _filled(chosen: Tensor, costs: Tensor) -> Tensor:
    """No cluster empty: the point that its own suits least, of those with company, goes to an empty one."""
    chosen = chosen.clone()
    for number in range(costs.shape[1]):
        if number in chosen:
            continue
        cost = costs[torch.arange(len(chosen)), chosen]
        alone = torch.bincount(chosen, minlength=costs.shape[1])[chosen] == 1
        chosen[cost.masked_fill(alone, -1).argmax()] = number
    return chosen
