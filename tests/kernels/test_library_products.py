"""Products of prompts by PyTorch: one batch of equal shapes, no copies, and the values of float64."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from zweave.kernels import (
    REFERENCE_OPS,
    DeltaFactors,
    LinearMode,
    Quantized,
    Stack,
    StackedLinear,
    quantize,
    together,
)

T, N = 150, 48
# Rows, components and leading ones of each linear; the products that a library is given in delta and factored mode.
CASES = {
    "grouped queries": ([(64, 40, 12), (32, 24, 8), (32, 24, 8)], (1 + 2 + 2, 1 + 2)),
    "equal": ([(64, 40, 12)] * 3, (1 + 1 + 1, 1 + 1)),
    "pair": ([(56, 48, 16)] * 2, (1 + 1 + 1, 1 + 1)),
    "one": ([(56, 48, 16)], (1 + 1 + 1, 1 + 1)),
    "all different": ([(64, 40, 12), (32, 24, 8), (33, 25, 9)], (1 + 3 + 3, 1 + 3)),
}
_PRODUCTS = {"mm", "addmm_", "addmm", "bmm", "baddbmm_", "baddbmm"}


class Counted(TorchDispatchMode):
    """Counts the ops, and holds the products of three dimensions to what cuBLAS takes as it lies."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.ops[name] += 1
        for tensor in [*args, (kwargs or {}).get("out")]:
            if name in _PRODUCTS and isinstance(tensor, Tensor) and tensor.dim() == 3:
                rows, columns = sorted(zip(tensor.stride()[1:], tensor.shape[1:], strict=True), reverse=True)
                assert columns[0] == 1 and rows[0] >= columns[1], "cuBLAS would be given a copy"
        return func(*args, **(kwargs or {}))


def linear(sizes: list[tuple[int, int, int]], dtype: torch.dtype, int8: bool = False) -> StackedLinear:
    normal = lambda rows, columns: torch.randn(rows, columns).mul_(columns**-0.5).to(dtype)  # noqa: E731
    outputs, ranks, leading = zip(*sizes, strict=True)
    vt, u = Stack.of([normal(rank, N) for rank in ranks]), together([normal(m, rank) for m, rank, _ in sizes])
    factors = DeltaFactors.leading(vt.parts, u, leading)
    if int8:
        factors = DeltaFactors(
            tuple(quantize(part.float(), "int8") for part in factors.vt),
            tuple(quantize(part.float(), "int8") for part in factors.u),
        )
    delta = torch.rand(3, sum(leading)) - 0.5
    delta[0] = 0
    dense, scale = Stack.of([normal(m, N) for m in outputs]), torch.rand(3, sum(ranks))
    return StackedLinear(REFERENCE_OPS, dense, vt, u, scale, factors, delta, None, library_from=1)


def wide(x: Tensor, vt: Any, table: Tensor, slot: Tensor, u: Any) -> Tensor:
    full = [
        part.data.double() * part.scale if isinstance(part, Quantized) else part.double()
        for part in (*vt, *u)
    ]
    vt, u = full[: len(vt)], full[len(vt) :]
    h = x.double() @ torch.cat(vt).T * table[slot.long()].double()
    parts = h.split([part.shape[1] for part in u], 1)
    return torch.cat([part @ each.T for part, each in zip(parts, u, strict=True)], 1)


@pytest.mark.parametrize("int8", [False, True], ids=["plain", "int8"])
@pytest.mark.parametrize("mode", [LinearMode.DELTA, LinearMode.FACTORED], ids=["delta", "factored"])
@pytest.mark.parametrize("case", CASES)
def test_equal_shapes_are_one_product_without_a_copy(case: str, mode: LinearMode, int8: bool) -> None:
    sizes, products = CASES[case]
    made = linear(sizes, torch.float32, int8)
    x, slot = torch.randn(T, N), torch.arange(T, dtype=torch.int32) % 3
    with Counted() as counted:
        y = made._many(x, slot, mode)
    assert sum(counted.ops[name] for name in _PRODUCTS) == products[mode == LinearMode.FACTORED]
    assert not counted.ops.keys() & {"clone", "contiguous", "cat", "stack"}
    # What the reference of the scales between both products copies is no kernel's.
    is_delta = mode == LinearMode.DELTA
    with Counted() as between:
        made.ops.scale_by_slot(torch.zeros(T, made.delta.shape[1]), made.delta, slot, zero_base=is_delta)
    assert counted.ops["copy_"] == between.ops["copy_"]
    if mode == LinearMode.FACTORED:
        wanted = wide(x, made.vt.parts, made.scale, slot, made.u)
    else:
        wanted = x.double() @ made.dense.whole.double().T
        wanted += wide(x, made.leading.vt, made.delta, slot, made.leading.u)
    torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=1e-5)


def test_factors_of_equal_shape_are_held_once_in_one_allocation() -> None:
    one, two, other = torch.randn(4, 3), torch.randn(4, 3), torch.randn(5, 3)
    found = together([other, one, two])
    assert found[0].data_ptr() == other.data_ptr()
    assert found[2].data_ptr() - found[1].data_ptr() == one.nbytes
    assert found[1].untyped_storage().nbytes() == 2 * one.nbytes
    assert torch.equal(found[1], one) and torch.equal(found[2], two)


def test_matrices_of_several_allocations_are_products_of_their_own() -> None:
    sizes, _ = CASES["pair"]
    made = linear(sizes, torch.bfloat16)
    apart = tuple(part.clone() for part in made.u)
    x, slot = torch.randn(T, N).bfloat16(), torch.arange(T, dtype=torch.int32) % 3
    batched = made._many(x, slot, LinearMode.FACTORED)
    object.__setattr__(made, "u", apart)
    with Counted() as counted:
        torch.testing.assert_close(made._many(x, slot, LinearMode.FACTORED), batched)
    assert counted.ops["mm"] == 3 and not counted.ops["bmm"]
