"""Components that single slots bring along, beside those of a decomposition.

    y[t] += U (scale[slot[t]] * (Vt x[t]))        of the components in slot[t]'s pages

x [T, N]   Vt [P, N]   U [M, P]   scale [S, P]   slot [T]   ->   y [T, M]

A LoRA is such components: the rows of A are rows of Vt, the columns of B columns of U, and alpha / r stands in the
scale. They lie in pages of 16 components, as keys and values lie in blocks: an adapter takes as many as its rank wants,
wherever they are free, and gives them back. A batch reads the pages of its slots and no others, whatever else is
resident; tokens of other slots have zeros there. Nothing is gathered and no token sorted. Bytes: the pages in use,
16 (M + N) weights each; FLOPs: 2 T (M + N) for each of their components.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from . import _C
from .layout.packed import PANEL, Packed, unpack

# Components of a page: a panel of Vt.
PAGE = PANEL


@dataclass(frozen=True, slots=True)
class ComponentPages:
    """The pages of a linear, and which slots have them.

    vt: [pages, ...], a panel of Vt [16, N] each; for a GPU [pages, 16, N]. Contiguous within a page, as u is; a page
        that no slot has may hold anything finite.
    u: [pages, ...], the panels of U [M, 16] each; for a GPU [pages, 16, M].
    scale: [S, P] float32, P = 16 pages; zero outside a slot's own pages.
    pages_of: [S, most] int32, the pages of each slot, ascending, then -1.
    adapted: [S] uint8, whether a slot's components act on this linear.
    """

    vt: Tensor
    u: Tensor
    scale: Tensor
    pages_of: Tensor
    adapted: Tensor

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
