"""Adapters in the order of the pages: every matrix as if it were alone, in as many calls however many there are."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from zweave.kernels import PAGE, ComponentMemory, Packed, pack_components, unpack

# (M, N) and rank of each linear, two of which are alike.
LINEARS = [((33, 70), 5), ((16, 16), 20), ((33, 70), 5), ((7, 129), 16), ((33, 70), 1)]
SHAPES = [shape for shape, _ in LINEARS]
PAGES = 6


def factors(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], list[float]]:
    random = torch.Generator().manual_seed(0)
    vts = [torch.randn(rank, N, generator=random).to(dtype) for (_, N), rank in LINEARS]
    us = [torch.randn(M, rank, generator=random).to(dtype) for (M, _), rank in LINEARS]
    return vts, us, [0.5 + 0.3 * index for index in range(len(LINEARS))]


def memory_of(dtype: torch.dtype, in_panels: bool) -> ComponentMemory:
    """Unwritten, of NaN."""
    size, nothing = len(SHAPES), torch.empty(len(SHAPES), 0)
    memory = ComponentMemory.zeros(
        SHAPES, PAGES, dtype, torch.zeros(size, 1, PAGES * PAGE), torch.empty(0), nothing, in_panels
    )
    memory.rows.fill_(torch.nan)
    return memory


def read(memory: ComponentMemory, index: int, page: int, in_panels: bool) -> tuple[Tensor, Tensor]:
    """Vt [16, N] and U [M, 16] of a linear's page."""
    linear, (M, N) = memory.linears[index], SHAPES[index]
    if not in_panels:
        return linear.vt[page], linear.u[page].T
    return unpack(Packed(linear.vt[page : page + 1], (PAGE, N))), unpack(Packed(linear.u[page], (M, PAGE)))


@pytest.mark.parametrize("in_panels", [True, False], ids=["panels", "rows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("given", [torch.float32, torch.float16], ids=["of f32", "of f16"])
@pytest.mark.parametrize("adapted", [[0, 1, 2, 3, 4], [0, 2, 3], [4]], ids=["all", "with a gap", "the last"])
def test_every_linear_has_its_own(
    adapted: list[int], given: torch.dtype, dtype: torch.dtype, in_panels: bool
) -> None:
    vts, us, scales = ([values[index] for index in adapted] for values in factors(given))
    components = pack_components(vts, us, scales, dtype, in_panels)
    pages = [1, 4][: len(components)]
    assert len(pages) == (2 if 1 in adapted else 1)
    memory = memory_of(dtype, in_panels)
    list(memory.write(pages, adapted, components))
    for vt, u, scale, index in zip(vts, us, scales, adapted, strict=True):
        found = [read(memory, index, page, in_panels) for page in pages]
        rank = len(vt)
        whole_vt, whole_u = torch.cat([a for a, _ in found]), torch.cat([b for _, b in found], 1)
        assert torch.equal(whole_vt[:rank], vt.to(dtype))
        assert torch.equal(whole_u[:, :rank], (u.float() * scale).to(dtype))
        assert not whole_vt[rank:].any() and not whole_u[:, rank:].any()
    # Other pages and linears are left as they were.
    for page in range(PAGES):
        for index in range(len(SHAPES)):
            if page not in pages or index not in adapted:
                assert memory.linears[index].vt[page].isnan().all()
                assert memory.linears[index].u[page].isnan().all()


@pytest.mark.usefixtures("poisoned_outputs")
def test_what_was_never_written_is_zero() -> None:
    size, nothing = len(SHAPES), torch.zeros(len(SHAPES), 0)
    memory = ComponentMemory.zeros(
        SHAPES, PAGES, torch.float32, torch.zeros(size, 1, PAGES * PAGE), torch.zeros(0), nothing
    )
    assert not memory.rows.any()


class _Counted(TorchDispatchMode):
    """Counts the ops that run."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_more_linears_of_one_shape_are_no_more_calls() -> None:
    def calls(count: int) -> int:
        shapes = [(32, 48)] * count
        absent = torch.empty(count, 0)
        memory = ComponentMemory.zeros(
            shapes, 1, torch.float32, torch.zeros(count, 1, PAGE), torch.empty(0), absent
        )
        vts, us = [torch.ones(16, 48)] * count, [torch.ones(32, 16)] * count
        with _Counted() as counted:
            list(memory.write([0], range(count), pack_components(vts, us, [1.0] * count, torch.float32)))
        return counted.count

    assert calls(20) == calls(2) > 0
