"""Components that single slots bring along, beside those of a decomposition.

    y[t] += U (scale[slot[t]] * (Vt x[t]))        of the components in slot[t]'s pages

x [T, N]   Vt [P, N]   U [M, P]   scale [S, P]   slot [T]   ->   y [T, M]

A LoRA is such components: the rows of A are rows of Vt, the columns of B columns of U, and alpha / r stands in the
scale. They lie in pages of 16 components, as keys and values lie in blocks: an adapter takes as many as its rank wants,
wherever they are free, and gives them back. A batch reads the pages of its slots and no others, whatever else is
resident; tokens of other slots have zeros there. Nothing is gathered and no token sorted. Bytes: the pages in use,
16 (M + N) weights each; FLOPs: 2 T (M + N) for each of their components.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import _C
from .layout.packed import PANEL, Packed, pack, unpack

# Components of a page: a panel of Vt.
PAGE = PANEL


@dataclass(frozen=True, slots=True)
class PackedComponents:
    """Components in kernel order, as many pages as they fill; what is left of the last is zero.

    vt: [pages, ...], a panel of Vt [16, N] each; for a GPU [pages, 16, N].
    u: [pages, ...], the panels of U [M, 16] each; for a GPU [pages, 16, M].
    """

    vt: Tensor
    u: Tensor

    @classmethod
    def of(cls, vt: Tensor, u: Tensor) -> "PackedComponents":
        """vt: [r, N]; u: [M, r]; both bf16 or both float32."""
        if missing := -len(vt) % PAGE:
            u = pad(u, (0, missing))
        return cls(pack(vt).data, torch.stack([pack(part).data for part in u.split(PAGE, 1)]))

    @classmethod
    def rows(cls, vt: Tensor, u: Tensor) -> "PackedComponents":
        """As `of`, for a GPU."""
        missing = -len(vt) % PAGE
        parts = pad(vt, (0, 0, 0, missing)), pad(u, (0, missing)).T
        return cls(*(part.unflatten(0, (-1, PAGE)).contiguous() for part in parts))


@dataclass(frozen=True, slots=True)
class ComponentPages:
    """The pages of a linear, and which slots have them.

    vt: [pages, ...] and u: [pages, ...], see `PackedComponents`; contiguous within a page. A page that no slot has may
        hold anything finite.
    scale: [S, P] float32, P = 16 pages; zero outside a slot's own pages.
    pages_of: [S, most] int32, the pages of each slot, ascending, then -1.
    adapted: [S] uint8, whether a slot's components act on this linear.
    """

    vt: Tensor
    u: Tensor
    scale: Tensor
    pages_of: Tensor
    adapted: Tensor

    @classmethod
    def empty(
        cls,
        shapes: Sequence[tuple[int, int]],
        pages: int,
        dtype: torch.dtype,
        scale: Tensor,
        pages_of: Tensor,
        adapted: Tensor,
        packed: bool = True,
    ) -> list["ComponentPages"]:
        """Unwritten pages of linears, one after the other, where `scale` is.

        On a CPU memory is taken page by page, as they are written.

        shapes: of the linears, (M, N) each; L of them.
        scale: [L, S, P]; adapted: [L, S]; pages_of: of all linears.
        packed: in the order of a CPU's kernels.
        """
        order = PackedComponents.of if packed else PackedComponents.rows
        likes = [order(torch.zeros(1, N, dtype=dtype), torch.zeros(M, 1, dtype=dtype)) for M, N in shapes]
        parts = [part[0] for like in likes for part in (like.vt, like.u)]
        # The linears' parts of a page are neighbours, so that an adapter lies in few pages of memory.
        size = (pages, sum(part.numel() for part in parts))
        memory = (
            _C.empty_in_huge_pages(size, dtype)
            if scale.device.type == "cpu"
            else torch.empty(size, dtype=dtype, device=scale.device)
        )
        columns = memory.split([part.numel() for part in parts], 1)
        views = [column.unflatten(1, part.shape) for column, part in zip(columns, parts, strict=True)]
        return [
            cls(vt, u, scale[index], pages_of, adapted[index])
            for index, (vt, u) in enumerate(zip(views[::2], views[1::2], strict=True))
        ]

    def write(self, pages: Sequence[int], components: PackedComponents) -> None:
        """Writes components to pages that no step in flight reads; on a GPU without waiting, if they are pinned."""
        for page, vt, u in zip(pages, components.vt, components.u, strict=True):
            self.vt[page].copy_(vt, non_blocking=True)
            self.u[page].copy_(u, non_blocking=True)

    def native(self) -> _C.ComponentPages:
        return _C.ComponentPages(
            vt=self.vt, u=self.u, scale=self.scale, pages_of=self.pages_of, adapted=self.adapted
        )


def component_pages_ref(pages: ComponentPages, x: Tensor, slot: Tensor, shape: tuple[int, int]) -> Tensor:
    """Semantics: what the components add to y [T, M], in float64.

    x: [T, N]; slot: [T]; shape: (M, N).
    """
    y = torch.zeros(len(x), shape[0], dtype=torch.float64)
    for t, s in enumerate(slot.tolist()):
        for page in pages.pages_of[s].tolist() if pages.adapted[s] else ():
            if page < 0:
                break
            vt = unpack(Packed(pages.vt[page : page + 1], (PAGE, shape[1]))).double()
            u = unpack(Packed(pages.u[page], (shape[0], PAGE))).double()
            y[t] += u @ (pages.scale[s, page * PAGE : (page + 1) * PAGE].double() * (vt @ x[t].double()))
    return y
