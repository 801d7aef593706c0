"""The memory of component pages, and components in the order in which they lie there.

A page of all linears is one stretch, the linears one after the other. An adapter is put into that order as a whole,
those of its matrices that have one shape together, so that it takes a few dozen calls and one copy a page however many
matrices it adapts: whoever loads it runs beside the engine's steps, and each call may keep these from the interpreter.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import _C
from .component_pages import PAGE, ComponentPages
from .layout.packed import pack

# Linears of a model, one after the other, that are put into order or written at once: a millisecond or two of work.
_TOGETHER = 28


@dataclass(frozen=True, slots=True)
class ComponentMemory:
    """The pages of some linears.

    rows: [pages, ...], a page of all linears each; contiguous.
    starts: where a linear's part of a row starts, and where the last one's ends.
    linears: views of the rows.
    """

    rows: Tensor
    starts: Sequence[int]
    linears: Sequence[ComponentPages]

    @classmethod
    def zeros(
        cls,
        shapes: Sequence[tuple[int, int]],
        pages: int,
        dtype: torch.dtype,
        scale: Tensor,
        pages_of: Tensor,
        adapted: Tensor,
        in_panels: bool = True,
    ) -> "ComponentMemory":
        """Pages of zeros, where `scale` is. On a CPU memory is taken page by page, as they are written.

        A page that an adapter has in all linears is read in those that it does not adapt too, with a scale of zero:
        whatever lies there must be finite.

        shapes: of the linears, (M, N) each; L of them.
        scale: [L, S, P]; adapted: [L, S]; pages_of: of all linears.
        in_panels: in the order of a CPU's kernels.
        """
        nothing = [(torch.zeros(1, N, dtype=dtype), torch.zeros(M, 1, dtype=dtype)) for M, N in shapes]
        parts = [part[0] for vt, u in nothing for part in _ordered(vt[None], u[None], in_panels)]
        widths = [part[0].numel() for part in parts]
        size = (pages, sum(widths))
        rows = (
            _C.zeros_in_huge_pages(size, dtype)
            if scale.device.type == "cpu"
            else torch.zeros(size, dtype=dtype, device=scale.device)
        )
        views = [
            column.unflatten(1, part.shape[1:])
            for column, part in zip(rows.split(widths, 1), parts, strict=True)
        ]
        starts = [sum(widths[:end]) for end in range(0, len(widths) + 1, 2)]
        linears = [
            ComponentPages(vt, u, scale[index], pages_of, adapted[index])
            for index, (vt, u) in enumerate(zip(views[::2], views[1::2], strict=True))
        ]
        return cls(rows, starts, linears)

    def write(self, pages: Sequence[int], linears: Sequence[int], components: Tensor) -> Iterator[None]:
        """Writes components to pages that no step in flight reads; on a GPU without waiting, if they are pinned.

        linears: whose they are, ascending.
        components: of `pack_components`, for as many pages.
        Yields between pieces of the work.
        """
        column = 0
        for _, run in groupby(enumerate(linears), lambda item: (item[1] - item[0], item[0] // _TOGETHER)):
            neighbours = [linear for _, linear in run]
            start, end = self.starts[neighbours[0]], self.starts[neighbours[-1] + 1]
            for page, row in zip(pages, components, strict=True):
                self.rows[page, start:end].copy_(row[column : column + end - start], non_blocking=True)
                yield
            column += end - start


def pack_components(
    vts: Sequence[Tensor],
    us: Sequence[Tensor],
    scales: Sequence[float],
    dtype: torch.dtype,
    in_panels: bool = True,
    rest: Callable[[], None] = lambda: None,
) -> Tensor:
    """Semantics: scales[i] U_i Vt_i as components of linear i, in the order of `ComponentMemory`, zero padded.

    vts: [r, N] each; us: [M, r] each, floats; linears differ in all of them.
    scales: multiplied in float32, before the product is rounded to `dtype`.
    rest: called between pieces of the work.
    Returns [pages, ...], the linears one after the other, in as many pages as the largest r fills.
    """
    pages = -(-max(map(len, vts)) // PAGE)
    alike: dict[object, list[int]] = {}
    for index, (vt, u) in enumerate(zip(vts, us, strict=True)):
        alike.setdefault((vt.shape, u.shape, index // _TOGETHER), []).append(index)
    parts: list[tuple[Tensor, Tensor]] = [(vt, vt) for vt in vts]
    for indices in alike.values():
        factor = torch.tensor([scales[i] for i in indices], dtype=torch.float32)[:, None, None]
        vt = torch.stack([vts[i] for i in indices]).to(dtype)
        u = torch.stack([us[i] for i in indices]).float().mul_(factor).to(dtype)
        if missing := pages * PAGE - vt.shape[1]:
            vt, u = pad(vt, (0, 0, 0, missing)), pad(u, (0, missing))
        ordered = (part.flatten(2) for part in _ordered(vt, u, in_panels))
        for index, part in zip(indices, zip(*ordered, strict=True), strict=True):
            parts[index] = part
        rest()
    halves = [half for part in parts for half in part]
    ends = [0, *accumulate(half.shape[1] for half in halves)]
    components = torch.empty(pages, ends[-1], dtype=dtype)
    for first in range(0, len(halves), 2 * _TOGETHER):
        some = halves[first : first + 2 * _TOGETHER]
        torch.cat(some, 1, out=components[:, ends[first] : ends[first + len(some)]])
        rest()
    return components


def _ordered(vt: Tensor, u: Tensor, in_panels: bool) -> tuple[Tensor, Tensor]:
    """Components of L linears of one shape, vt [L, r, N] and u [L, M, r], by pages: [L, pages, ...] each.

    In panels a page is a panel of Vt [16, N] and the panels of U [M, 16]; else it is Vt [16, N] and U^T [16, M].
    """
    if missing := -vt.shape[1] % PAGE:
        vt, u = pad(vt, (0, 0, 0, missing)), pad(u, (0, missing))
    linears, pages = len(vt), vt.shape[1] // PAGE
    if not in_panels:
        return vt.unflatten(1, (pages, PAGE)), u.transpose(1, 2).unflatten(1, (pages, PAGE)).contiguous()
    # Whole panels, which no two linears share.
    u = pad(u, (0, 0, 0, -u.shape[1] % PAGE)).unflatten(2, (pages, PAGE)).transpose(1, 2)
    panels = pack(u.reshape(-1, PAGE)).data
    return pack(vt.flatten(0, 1)).data.unflatten(0, (linears, pages)), panels.unflatten(
        0, (linears, pages, -1)
    )
