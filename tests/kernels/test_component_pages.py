"""Components that slots bring along: against float64, and the same bits whatever shares the batch."""

import pytest
import torch
from torch import Tensor

from zweave.kernels import (
    PAGE,
    AdaptedLinear,
    ComponentMemory,
    LinearMode,
    Quantized,
    component_pages_ref,
    pack,
    pack_components,
    quantize,
)

SLOTS, PAGES = 6, 9
# Slot 0 is the base; slots 4 and 5 share a page, 3 has pages that do not act on this linear.
PAGES_OF = [[], [0, 1, 2], [7], [5], [3, 6, 8], [3]]
MODES = [
    LinearMode.DENSE,
    LinearMode.DENSE,
    LinearMode.FACTORED,
    LinearMode.DENSE,
    LinearMode.DELTA,
    LinearMode.DELTA,
]
SHAPES = pytest.mark.parametrize(("M", "N"), [(33, 70), (16, 16), (7, 129), (200, 31)])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])


def stored(matrix: Tensor, dtype: torch.dtype, format: str | None) -> Tensor | Quantized:
    return quantize(matrix.contiguous(), format) if format else matrix.contiguous().to(dtype)


def adapted_linear(
    M: int, N: int, dtype: torch.dtype, format: str | None = None
) -> tuple[AdaptedLinear, AdaptedLinear]:
    """A linear with component pages, and the same without.

    format: of the leading components, if they are quantised; then there are no others, and nothing goes factored.
    """
    random = torch.Generator().manual_seed(M * N)
    weight = torch.randn(M, N, generator=random) / N**0.5
    u, sigma, vt = torch.linalg.svd(weight, full_matrices=False)
    kept = max(1, sigma.numel() // 4)
    factor = 1 + 0.2 * torch.randn(SLOTS, sigma.numel(), generator=random)
    factor[[0, 1, 3]] = 1
    factor[4:, kept:] = 1
    scale = torch.zeros(SLOTS, PAGES * PAGE)
    pages_of = torch.full((SLOTS, 4), -1, dtype=torch.int32)
    for slot, own in enumerate(PAGES_OF):
        pages_of[slot, : len(own)] = torch.tensor(own, dtype=torch.int32)
        for page in own:
            scale[slot, page * PAGE : (page + 1) * PAGE] = torch.randn(PAGE, generator=random)
    adapted = torch.tensor([1, 1, 1, 0, 1, 1], dtype=torch.uint8)
    memory = ComponentMemory.zeros(
        [(24, 40), (M, N)], PAGES, dtype, scale.expand(2, -1, -1), pages_of, adapted.expand(2, -1)
    )
    other, pages = memory.linears
    other.vt.fill_(torch.nan), other.u.fill_(torch.nan)
    # A page that nobody has is never read.
    pages.vt[4], pages.u[4] = torch.nan, torch.nan
    for page in (0, 1, 2, 3, 5, 6, 7, 8):
        # The last adapters end within a page.
        rank = PAGE if page < 7 else 5
        a, b = torch.randn(rank, N, generator=random) / N**0.5, torch.randn(M, rank, generator=random)
        list(memory.write([page], [1], pack_components([a], [b], [1.0], dtype)))
    parts = {
        "shape": (M, N),
        "dense": pack(weight.to(dtype)),
        "vt": pack(stored(vt[: kept if format else None], dtype, format)),
        "u": pack(stored(u[:, : kept if format else None], dtype, format)),
        "scale": None if format else factor * sigma,
        "delta": ((factor - 1) * sigma)[:, :kept],
        "bias": torch.randn(M, generator=random).to(dtype),
        "modes": torch.tensor(
            [LinearMode.DELTA if format and mode else mode for mode in MODES], dtype=torch.uint8
        ),
    }
    return AdaptedLinear(**parts, pages=pages), AdaptedLinear(**parts)


def tokens(slots: list[int], N: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(len(slots))
    x = torch.randn(len(slots), N, generator=random).to(dtype)
    return x, torch.tensor(slots, dtype=torch.int32)


@DTYPES
@SHAPES
@pytest.mark.parametrize(
    "slots",
    [[0], [1], [2, 2], [4, 4, 5], [0, 1, 2, 3, 4, 5] * 3, [0] * 50 + [1] * 120 + [4] * 70 + [5] * 40],
    ids=["base", "one", "factored", "shared", "all", "long"],
)
def test_components_are_added_in_every_mode(
    M: int, N: int, dtype: torch.dtype, slots: list[int], poisoned_outputs: None
) -> None:
    linear, without = adapted_linear(M, N, dtype)
    x, slot = tokens(slots, N, dtype)
    y = linear(x, slot)
    assert linear.pages is not None
    added = component_pages_ref(linear.pages, x, slot, (M, N))
    rest = without(x, slot).double()
    tolerance = 2e-5 if dtype == torch.float32 else 4e-2
    torch.testing.assert_close(y.double(), rest + added, rtol=tolerance, atol=tolerance * 4)
    # Slots without components get the bits of the linear without any.
    plain = [s in (0, 3) for s in slots]
    assert torch.equal(y[plain], without(x, slot)[plain])


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_components_are_added_to_quantised_factors(format: str, poisoned_outputs: None) -> None:
    linear, without = adapted_linear(48, 70, torch.bfloat16, format)
    x, slot = tokens([0, 1, 2, 3, 4, 5] * 5, 70, torch.bfloat16)
    assert linear.pages is not None
    expected = without(x, slot).double() + component_pages_ref(linear.pages, x, slot, (48, 70))
    torch.testing.assert_close(linear(x, slot).double(), expected, rtol=4e-2, atol=0.16)


@DTYPES
def test_a_row_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    linear, _ = adapted_linear(48, 70, dtype)
    x, slot = tokens([0, 1, 2, 3, 4, 5] * 30, 70, dtype)
    y = linear(x, slot)
    for t in range(0, len(x), 7):
        assert torch.equal(linear(x[t : t + 1], slot[t : t + 1])[0], y[t])


def test_all_tokens_factored() -> None:
    linear, without = adapted_linear(33, 70, torch.float32)
    x, slot = tokens([0, 1, 4], 70, torch.float32)
    assert linear.pages is not None
    expected = without(x, slot, all_factored=True).double() + component_pages_ref(
        linear.pages, x, slot, (33, 70)
    )
    torch.testing.assert_close(linear(x, slot, all_factored=True).double(), expected, rtol=2e-5, atol=1e-4)


def test_parts_that_do_not_fit_are_refused() -> None:
    linear, _ = adapted_linear(33, 70, torch.float32)
    x, slot = tokens([1], 70, torch.float32)
    assert linear.pages is not None
    linear.pages.pages_of[1, 0] = PAGES
    with pytest.raises(RuntimeError, match="slot 1 has page 9 of 9"):
        linear(x, slot)
    linear.pages.pages_of[1, 0] = 0
    with pytest.raises(RuntimeError, match="dense must be BFloat16"):
        linear(x.bfloat16(), slot)
