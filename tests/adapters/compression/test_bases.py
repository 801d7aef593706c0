"""Bases of one matrix against dense float64 computation."""

import pytest
import torch
from torch import Tensor

from zweave.adapters.compression.bases import Plan, fit
from zweave.adapters.compression.diagonal import Diagonal
from zweave.adapters.compression.full import Full
from zweave.adapters.compression.stack import Stack
from zweave.adapters.lora import LoraPair

M, N = 20, 30


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unrelated(ranks: list[int]) -> list[LoraPair]:
    return [LoraPair(values(r, N, seed=i), values(M, r, seed=99 + i), 2.0) for i, r in enumerate(ranks)]


def dense(pair: LoraPair) -> Tensor:
    return pair.scaling * pair.b.double() @ pair.a.double()


def approximations(basis: Diagonal | Full, stack: Stack) -> list[Tensor]:
    """Of each X_i, without its norm taken away."""
    if isinstance(basis, Diagonal):
        sigma = basis.coefficients(stack) * stack.norms[:, None]
        return [basis.u @ s.diag() @ basis.v.T for s in sigma]
    left, right = basis.cores(stack)
    cores = [left[stack.owner == i].T @ right[stack.owner == i] for i in range(len(stack))]
    return [norm * basis.u @ core @ basis.v.T for core, norm in zip(cores, stack.norms, strict=True)]


def test_a_stack_holds_the_products_without_their_norms() -> None:
    pairs = [*unrelated([3, 1]), None, LoraPair(values(2, N), torch.zeros(M, 2), 1.0)]
    stack = Stack.of(pairs)
    assert stack.norms[2:].tolist() == [0, 0] and 2 not in stack.owner and 3 not in stack.owner
    for i in range(2):
        mine = stack.owner == i
        torch.testing.assert_close(
            stack.norms[i] * stack.left[mine].T @ stack.right[mine], dense(pairs[i]), rtol=1e-12, atol=1e-12
        )
    few = stack.select([3, 1])
    assert few.owner.tolist() == [1] and few.norms[0] == 0 and few.norms[1] == stack.norms[1]


@pytest.mark.parametrize("variant", ["diagonal", "full"])
@pytest.mark.parametrize("rank", [1, 4, 9, 25])
def test_errors_are_those_of_dense_matrices(variant: str, rank: int) -> None:
    pairs = [*unrelated([3, 1, 8, 5]), None]
    stack = Stack.of(pairs)
    basis = fit(stack, Plan(variant, rank, 0))
    found = basis.squared_errors(stack).sqrt()
    for i, approximation in enumerate(approximations(basis, stack)[:-1]):
        wanted = (dense(pairs[i]) - approximation).norm() / dense(pairs[i]).norm()
        torch.testing.assert_close(found[i], wanted, rtol=1e-6, atol=1e-7)
    assert found[-1] == 0


@pytest.mark.parametrize("variant", ["diagonal", "full"])
def test_nothing_is_lost_with_as_many_components_as_the_ranks_together(variant: str) -> None:
    stack = Stack.of(unrelated([3, 1, 8, 16]))
    assert fit(stack, Plan(variant, 28, 0)).squared_errors(stack).max() < 1e-12
    assert fit(stack, Plan(variant, 4000, 0)).u.shape[1] <= 28
    assert fit(stack, Plan(variant, 12, 0)).squared_errors(stack).max() > 1e-3


@pytest.mark.parametrize("rank", [6, 24], ids=["few", "more than the matrix has"])
def test_a_shared_diagonal_basis_is_found_again(rank: int) -> None:
    u, v, sigma = values(M, rank), values(rank, N, seed=1), values(30, rank, seed=2)
    pairs = [LoraPair(v, u * s, 1.0) for s in sigma]
    stack = Stack.of(pairs)
    for seed in range(3):
        for pair, found in zip(
            pairs, approximations(fit(stack, Plan("diagonal", rank, seed)), stack), strict=True
        ):
            assert (found - dense(pair)).norm() < 1e-6 * dense(pair).norm()


@pytest.mark.parametrize("variant", ["diagonal", "full"])
@pytest.mark.parametrize("rank", [3, 6])
def test_copies_of_an_adapter_take_no_components(variant: str, rank: int) -> None:
    (pair,) = unrelated([3])
    larger = LoraPair(pair.a * 1e6, pair.b, pair.scaling)
    stack = Stack.of([pair, pair, larger, pair])
    assert fit(stack, Plan(variant, rank, 0)).squared_errors(stack).max() < 1e-12


def test_shared_subspaces_are_found_again() -> None:
    u, v = values(M, 7), values(7, N, seed=1)
    pairs = [LoraPair(values(4, 7, seed=i) @ v, u @ values(7, 4, seed=50 + i), 1.0) for i in range(12)]
    stack = Stack.of(pairs)
    for pair, found in zip(pairs, approximations(fit(stack, Plan("full", 7, 0)), stack), strict=True):
        assert (found - dense(pair)).norm() < 1e-6 * dense(pair).norm()


def test_the_full_variant_errs_least_and_neither_more_than_the_largest_components_alone() -> None:
    stack = Stack.of(unrelated([4] * 8))
    full, diagonal = (fit(stack, Plan(variant, 12, 0)) for variant in ("full", "diagonal"))
    largest = stack.left.norm(dim=1).sort(descending=True).values[:12].square().sum() / 8
    assert full.squared_errors(stack).mean() < diagonal.squared_errors(stack).mean() < 1 - largest
