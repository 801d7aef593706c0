"""Components added to a product on a GPU, interpreted on a CPU, against float64."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from zweave.kernels import PAGE, ComponentMemory, ComponentPages, pack_components
from zweave.kernels.add_components import add_components_ref, add_components_triton

pytest.importorskip("triton")

SLOTS, PAGES = 5, 7
NAN = float("nan")
# Slots 0 and 1 have none, 2 has two pages, 3 shares one of them, 4 has one of its own.
PAGES_OF = {2: (1, 5), 3: (5,), 4: (6,)}
# T, N, M of each linear, and the slots of the tokens.
SHAPES = {
    "one token": (1, 40, (24,), [2]),
    "nobody has any": (3, 24, (16,), [0, 1, 0]),
    "q, k and v": (19, 72, (48, 16, 20), [0, 2, 3, 4, 2, 1]),
    "tiles of other slots": (130, 33, (130, 7), [*[4] * 64, *[0] * 64, 3, 2]),
    "splits": (5, 2100, (40,), [2, 0, 4, 4, 3]),
    "no token": (0, 24, (16,), [0]),
}


def components_of(shapes: Sequence[tuple[int, int]], dtype: torch.dtype) -> Sequence[ComponentPages]:
    """Random components; pages that no slot has are NaN."""
    random = torch.Generator().manual_seed(len(shapes))
    scale = torch.zeros(len(shapes), SLOTS, PAGES * PAGE)
    for slot, pages in PAGES_OF.items():
        for page in pages:
            scale[:, slot, page * PAGE : (page + 1) * PAGE] = torch.randn(len(shapes), PAGE, generator=random)
    # A slot may leave one of the linears alone.
    scale[-1, 3] = 0
    unused = torch.empty(0, dtype=torch.int32)
    memory = ComponentMemory.zeros(
        shapes, PAGES, dtype, scale, unused, torch.empty(len(shapes), 0), in_panels=False
    )
    for index, (pages, (M, N)) in enumerate(zip(memory.linears, shapes, strict=True)):
        pages.vt.fill_(NAN), pages.u.fill_(NAN)
        for page in (1, 5, 6):
            rank = 9 if page == 6 else PAGE
            a, b = torch.randn(rank, N, generator=random) / N**0.5, torch.randn(M, rank, generator=random)
            list(memory.write([page], [index], pack_components([a], [b], [1.0], dtype, in_panels=False)))
    return memory.linears


def exact(x: Tensor, components: Sequence[ComponentPages], slot: Tensor) -> tuple[Tensor, Tensor]:
    """What is added, in float64, and the sum of its terms' sizes, which the rounding of each is a share of."""
    columns = sum(part.u.shape[2] for part in components)
    added, size = torch.zeros(2, len(x), columns, dtype=torch.float64)
    column = 0
    for part in components:
        of_part = slice(column, column := column + part.u.shape[2])
        for t, s in enumerate(slot.tolist()):
            for page in PAGES_OF.get(s, ()):
                scale = part.scale[s, page * PAGE : (page + 1) * PAGE].double()
                h, u = scale * (part.vt[page].double() @ x[t].double()), part.u[page].double()
                added[t, of_part] += h @ u
                size[t, of_part] += h.abs() @ u.abs()
    return added, size


@pytest.mark.combinations(
    interpreted={"interpreted": True, "reference": False},
    shape=SHAPES,
    dtype={"bf16": torch.bfloat16, "f32": torch.float32},
)
def test_components_are_added(interpreted, shape, dtype, interpreter) -> None:
    T, N, outputs, slots = shape
    random = torch.Generator().manual_seed(T)
    slot = torch.tensor(slots, dtype=torch.int32).repeat(T)[:T]
    x = torch.randn(T, N, generator=random).to(dtype)
    wide = torch.randn(T, sum(outputs) + 5, generator=random).to(dtype)
    before, y = wide.clone(), wide[:, 2:-3]
    components = components_of([(M, N) for M in outputs], dtype)
    active = sorted({page for s in slots for page in PAGES_OF.get(s, ())})
    pages = torch.tensor([len(active), *active, -1, PAGES + 9], dtype=torch.int32)
    added, size = exact(x, components, slot)
    expected = before[:, 2:-3].double() + added
    if interpreted:
        interpreter(add_components_triton, y, x, components, slot, pages)
    else:
        add_components_ref(y, x, components, slot, pages)
    # The interpreter cuts bf16 off: up to a unit in the last place, of each scaled sum and of y.
    unit = 2**-7 if dtype == torch.bfloat16 else 2**-20
    assert ((y.double() - expected).abs() <= unit * (size + expected.abs())).all()
    alone = [t for t, s in enumerate(slot.tolist()) if s not in PAGES_OF]
    assert torch.equal(y[alone], before[alone, 2:-3])
    assert torch.equal(wide[:, :2], before[:, :2]) and torch.equal(wide[:, -3:], before[:, -3:])


def test_a_row_is_the_same_in_any_company(interpreter) -> None:
    components = components_of([(40, 72)], torch.float32)
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 72, generator=random), torch.zeros(40, 40)
    slot = torch.tensor([2, 0, 4, 3] * 10, dtype=torch.int32)
    pages = torch.tensor([3, 1, 5, 6], dtype=torch.int32)
    interpreter(add_components_triton, y, x, components, slot, pages)
    for t, own in ((0, (2, 1, 5)), (3, (1, 5)), (38, (1, 6))):
        alone = torch.zeros(1, 40)
        few = torch.tensor(own, dtype=torch.int32)
        interpreter(add_components_triton, alone, x[t : t + 1], components, slot[t : t + 1], few)
        assert torch.equal(alone[0], y[t])


@pytest.mark.parametrize("interpreted", [True, False], ids=["interpreted", "reference"])
def test_an_unknown_slot_shows(interpreted, interpreter) -> None:
    components = components_of([(24, 40)], torch.float32)
    x, y = torch.ones(3, 40), torch.zeros(3, 24)
    slot, pages = torch.tensor([0, SLOTS, -1], dtype=torch.int32), torch.tensor([1, 6], dtype=torch.int32)
    arguments = y, x, components, slot, pages
    interpreter(add_components_triton, *arguments) if interpreted else add_components_ref(*arguments)
    assert (y[0] == 0).all() and y[1:].isnan().all()


def test_pages_elsewhere_are_refused(interpreter) -> None:
    one, other = components_of([(24, 40)], torch.float32)[0], components_of([(16, 40)], torch.float32)[0]
    slot, pages = torch.zeros(1, dtype=torch.int32), torch.tensor([1, 6], dtype=torch.int32)
    with pytest.raises(ValueError, match="one allocation"):
        interpreter(add_components_triton, torch.zeros(1, 40), torch.ones(1, 40), [one, other], slot, pages)
