"""Programs of a launch that wait for others of it, interpreted in turns as a device may run them."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from zweave.kernels.grouped_linear import grouped_delta_linear_triton, grouped_factored_linear_triton

pytest.importorskip("triton")

LOAD = "import sys, types; m = sys.modules['turns'] = types.ModuleType('turns'); exec(source, m.__dict__)"
NO_WAIT = "from zweave.kernels.triton import delta_roles as d; d.kept = d.wait_for_tiles; "
NO_WAIT += "d.wait_for_tiles = lambda *_: None"


@pytest.fixture
def in_turns(interpreted) -> Iterator[Callable[..., Tensor]]:
    """Launches with programs in turns."""
    interpreted(exec, LOAD, {"source": Path(__file__).with_name("turns.py").read_text()})

    def launch(seed: int, resident: int, *arguments: object) -> Tensor:
        interpreted(exec, f"import turns; turns.install({seed}, {resident})")
        try:
            return interpreted(*arguments)
        finally:
            interpreted(exec, "import turns; turns.uninstall()")

    yield launch


def case(silu: bool, factored: bool = False) -> tuple:
    """A launcher and its operands: splits in parallel, two tiles of tokens, of which the second is of the base."""
    random = torch.Generator().manual_seed(0)
    matrix = lambda *shape: torch.randn(*shape, generator=random) / shape[-1] ** 0.5  # noqa: E731
    x, slot = matrix(20, 512), torch.tensor([1, 0, 2, 1] * 4 + [0] * 4, dtype=torch.int32)
    w, vt = [matrix(70, 512), matrix(70, 512)], [matrix(5, 512), matrix(40, 512)]
    u, table = [matrix(70, 5), matrix(70, 40)], torch.rand(3, 45, generator=random)
    if factored:
        return partial(grouped_factored_linear_triton, silu=silu), x, vt, u, table, slot
    return partial(grouped_delta_linear_triton, silu=silu), x, w, vt, u, table, slot


@pytest.mark.parametrize("silu", [False, pytest.param(True, marks=pytest.mark.exhaustive)], ids=["", "silu"])
@pytest.mark.parametrize("factored", [False, True], ids=["delta", "factored"])
def test_bits_depend_on_no_order_of_programs(factored, silu, interpreted, in_turns) -> None:
    right = interpreted(*case(silu, factored))
    # A single resident program is the least that a device may run: it waits for none that has not run.
    for seed, resident in ((0, 1), (1, 3), (2, 100)):
        assert torch.equal(in_turns(seed, resident, *case(silu, factored)), right), (seed, resident)


def test_a_program_that_does_not_wait_is_found(interpreted, in_turns) -> None:
    right = interpreted(*case(False))
    interpreted(exec, NO_WAIT)
    try:
        results = [in_turns(seed, 100, *case(False)) for seed in range(3)]
    finally:
        interpreted(exec, "from zweave.kernels.triton import delta_roles as d; d.wait_for_tiles = d.kept")
    assert not all(torch.equal(y, right) for y in results)
