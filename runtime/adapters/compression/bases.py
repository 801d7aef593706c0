"""One pass over all matrices: a basis of each for every cluster, and what it makes of the adapters."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...io.progress import Report
from ...names import CompressionVariant
from ..lora import Lora
from .compressed_matrix import CompressedMatrix, DiagonalMatrix, FullMatrix
from .diagonal import Diagonal, fit_diagonal
from .full import Full, fit_full
from .stack import Stack


@dataclass(frozen=True, slots=True)
class Plan:
    """variant: of the bases; rank: K; seed: of their starts."""

    variant: CompressionVariant
    rank: int
    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """clusters: the matrices of each by module.
    fits: [n, clusters], sums over the matrices of each adapter's squared relative errors over each cluster's basis.
    errors: [n], ||W - W'|| / ||W|| of each adapter over all matrices together.
    """

    clusters: tuple[dict[str, CompressedMatrix], ...]
    fits: Tensor
    errors: Tensor


def fit(stack: Stack, plan: Plan) -> Diagonal | Full:
    """A basis of one matrix, of fewer components than K if the adapters' ranks together are less."""
    generator = torch.Generator().manual_seed(plan.seed)
    rank = min(plan.rank, len(stack.owner))
    return (fit_diagonal if plan.variant == "diagonal" else fit_full)(stack, rank, generator)


def fit_bases(
    loras: Sequence[Lora], modules: Sequence[str], chosen: Tensor, plan: Plan, stage: str, report: Report
) -> Fitted:
    """chosen: [n], the cluster of each adapter."""
    clusters = [members(chosen, number) for number in range(1 + int(chosen.max()))]
    matrices: tuple[dict[str, CompressedMatrix], ...] = tuple({} for _ in clusters)
    fits = torch.zeros(len(loras), len(clusters), dtype=torch.float64)
    whole, lost = torch.zeros(2, len(loras), dtype=torch.float64)
    for module, stack in stacks(loras, modules, stage, report):
        whole += stack.norms.square()
        for number, mine in enumerate(clusters):
            part = stack.select(mine)
            if not len(part.owner):
                fits[:, number] += stack.norms > 0
                continue
            basis = fit(part, plan)
            fits[:, number] += basis.squared_errors(stack)
            matrix = (
                DiagonalMatrix.of(basis, part) if isinstance(basis, Diagonal) else FullMatrix.of(basis, part)
            )
            matrices[number][module] = matrix
            lost[mine] += (matrix.error.double() * part.norms).square()
    return Fitted(matrices, fits, (lost / whole).sqrt())


def stacks(
    loras: Sequence[Lora], modules: Sequence[str], stage: str, report: Report
) -> Iterator[tuple[str, Stack]]:
    """The stack of each matrix; one at a time, as all together take more memory than the adapters."""
    for done, module in enumerate(modules):
        report(stage, done, len(modules))
        yield module, Stack.of([lora.pairs.get(module) for lora in loras])
    report(stage, len(modules), len(modules))


def members(chosen: Tensor, number: int) -> list[int]:
    """The adapters of a cluster."""
    indices: list[int] = (chosen == number).nonzero().flatten().tolist()
    return indices


def modules_of(loras: Mapping[str, Lora], shapes: Mapping[str, tuple[int, int]]) -> list[str]:
    """The matrices that an adapter changes, in the order of `shapes`."""
    adapted = {module for lora in loras.values() for module in lora.pairs}
    return [module for module in shapes if module in adapted]
