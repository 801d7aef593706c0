"""Which adapters share a basis: clusters, where one basis is not enough.

Adapters begin in the clusters of k-means of their singular values over one basis. Then each goes to the basis that
fits it best, and the bases are fitted anew, until the error grows no smaller.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...io.progress import Report
from ..lora import Lora
from .bases import Fitted, Plan, fit, fit_bases, stacks
from .diagonal import Diagonal

_MAX_ROUNDS = 10
_LEAST_GAIN = 1e-3
_MAX_MEANS_ROUNDS = 50


def fit_clusters(
    loras: Sequence[Lora], modules: Sequence[str], clusters: int, plan: Plan, report: Report
) -> tuple[Tensor, Fitted]:
    """The cluster of each adapter [n], and the bases.

    clusters: from 1 to the number of adapters; none is empty.
    """
    if clusters == 1:
        chosen = torch.zeros(len(loras), dtype=torch.int64)
        return chosen, fit_bases(loras, modules, chosen, plan, "fitting the basis", report)
    chosen = k_means(_signatures(loras, modules, plan, report), clusters, plan.seed)
    best: tuple[float, Tensor, Fitted] | None = None
    for step in range(_MAX_ROUNDS):
        stage = f"fitting {clusters} bases, round {step + 1}"
        fitted = fit_bases(loras, modules, chosen, plan, stage, report)
        error = fitted.fits.gather(1, chosen[:, None]).sum().item()
        if best is not None and error > best[0] * (1 - _LEAST_GAIN):
            break
        best = error, chosen, fitted
        moved = _filled(fitted.fits.argmin(1), fitted.fits)
        if torch.equal(moved, chosen):
            break
        chosen = moved
    assert best is not None
    return best[1], best[2]


def _signatures(loras: Sequence[Lora], modules: Sequence[str], plan: Plan, report: Report) -> Tensor:
    """The singular values of each adapter over one diagonal basis, all matrices in a row [n, ...]."""
    found = []
    for _, stack in stacks(loras, modules, "fitting one basis", report):
        if len(stack.owner):
            basis = fit(stack, replace(plan, variant="diagonal"))
            assert isinstance(basis, Diagonal)
            found.append(basis.coefficients(stack))
    return torch.nn.functional.normalize(torch.cat(found, 1), dim=1)


def k_means(points: Tensor, clusters: int, seed: int) -> Tensor:
    """The cluster of each point [n], none empty, from seeded centres far apart (k-means++)."""
    generator = torch.Generator().manual_seed(seed)
    picked = [int(torch.randint(len(points), (), generator=generator))]
    while len(picked) < clusters:
        distances = torch.cdist(points, points[picked]).amin(1).square()
        distances[picked] = 0
        # Copies of what is picked have no distance: any of them will do.
        rest = [i for i in range(len(points)) if i not in picked]
        far = distances.any()
        picked.append(int(torch.multinomial(distances, 1, generator=generator)) if far else rest[0])
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
        cost = costs.gather(1, chosen[:, None]).flatten()
        alone = torch.bincount(chosen, minlength=costs.shape[1])[chosen] == 1
        chosen[cost.masked_fill(alone, -1).argmax()] = number
    return chosen
