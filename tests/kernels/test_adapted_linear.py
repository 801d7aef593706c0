"""Tokens grouped by mode: each group is computed once, and the results come back in the batch's order."""

import warnings

import pytest
import torch
from torch import Tensor

import zweave.kernels
from zweave.kernels import AdaptedLinear, LinearMode, pack
from zweave.kernels.adapted_linear import compute_by_mode, group_by_mode

DENSE, DELTA, FACTORED, MERGED = LinearMode


def byte(*modes: LinearMode) -> Tensor:
    return torch.tensor(modes, dtype=torch.uint8)


def test_groups_ascend_and_one_mode_needs_no_index() -> None:
    slot = torch.arange(4, dtype=torch.int32)
    groups = group_by_mode(byte(FACTORED, DENSE, FACTORED, DELTA), slot)
    assert [group.mode for group in groups] == [DENSE, DELTA, FACTORED]
    assert [group.index.tolist() for group in groups if group.index is not None] == [[1], [3], [0, 2]]
    assert [group.slot.tolist() for group in groups] == [[1], [3], [0, 2]]
    (alone,) = group_by_mode(byte(DELTA, DELTA), slot[:2])
    assert alone.index is None and alone.slot.tolist() == [0, 1]
    assert group_by_mode(byte(), slot[:0]) == ()


@pytest.mark.parametrize("modes", [(), (DELTA,), (DENSE, DENSE), (FACTORED, DENSE, MERGED, DENSE)])
def test_results_come_back_in_order(modes: tuple[LinearMode, ...], poisoned_outputs: None) -> None:
    x = torch.randn(len(modes), 3)
    slot = torch.arange(len(modes), dtype=torch.int32)
    calls = []

    def compute(mode: LinearMode, x: Tensor, slot: Tensor) -> Tensor:
        calls.append(mode)
        return torch.cat([x * (1 + mode), slot[:, None].float()], dim=1)

    y = compute_by_mode(group_by_mode(byte(*modes), slot), x, 4, compute)
    expected = torch.cat([x * (1 + byte(*modes).float()[:, None]), slot[:, None].float()], dim=1)
    assert torch.equal(y, expected) and calls == sorted(set(modes))


def test_given_delta_factors_are_those_cut_out() -> None:
    generator = torch.Generator().manual_seed(0)
    w, vt, u = (torch.randn(shape, generator=generator) for shape in ((20, 40), (20, 40), (20, 20)))
    delta = torch.randn(3, 16, generator=generator)
    delta[0] = 0
    linears = [
        AdaptedLinear(
            shape=(20, 40),
            dense=pack(w),
            vt=pack(vt),
            u=pack(u),
            scale=torch.ones(3, 20),
            delta=delta,
            bias=None,
            modes=byte(DENSE, DELTA, DELTA),
            delta_factors=factors,
        )
        for factors in (None, (pack(vt[:16]), pack(u[:, :16])))
    ]
    x, slot = torch.randn(5, 40, generator=generator), torch.tensor([2, 0, 1, 0, 2], dtype=torch.int32)
    one, other = (linear(x, slot) for linear in linears)
    assert torch.equal(one, other) and torch.equal(one[slot == 0], linears[0].base(x)[slot == 0])


def test_a_mode_without_weights_is_refused() -> None:
    linear = AdaptedLinear((4, 4), None, None, None, None, None, None, byte(DELTA))
    with pytest.raises(RuntimeError, match="a slot is in mode DELTA, for which the linear has no weights"):
        linear(torch.ones(1, 4), torch.zeros(1, dtype=torch.int32))


def test_the_old_name_warns() -> None:
    with pytest.warns(DeprecationWarning, match="is now LinearMode"):
        assert zweave.kernels.Way is LinearMode
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not hasattr(zweave.kernels, "Ways")
