"""Components that single slots bring along, added to a product on a GPU: those of LoRAs.

    y_g[t] += sum over the pages p:  u_g[p]^T (scale_g[slot[t], p] * (vt_g[p] x[t]))

x [T, N]   vt_g [pages, 16, N]   u_g [pages, 16, M_g]   scale_g [S, 16 pages]   slot [T]   ->   y [T, sum of M_g]

T tokens, S slots, pages of 16 components (`component_pages.py`); g are linears of one input, as q, k and v. The step
says which pages its slots have; a tile of tokens reads those that one of its own has. Bytes: 16 (N + M) weights of each
page, y once in and once out, sums of 64 T a page and split; FLOPs: 32 T (N + M) a page.
See docs/kernels/add_components.md.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .component_pages import PAGE, ComponentPages
from .grouped_linear import MAX_GROUPS
from .triton.checks import check_input, check_tensor, on_device_of
from .triton.component_tile import _add_components_kernel, _component_sums_kernel
from .triton.optional_triton import triton
from .triton.pdl import launch_options

BLOCK_N = 64
BLOCK_M = 64
# Steps of a split: 1,024 inputs, so that few pages fill a chip.
STEPS = 16


def tile_tokens(T: int, dtype: torch.dtype) -> int:
    """Tokens of a tile; float32 is multiplied without tensor cores, in more registers."""
    return min(32 if dtype == torch.float32 else 64, max(16, 1 << max(T - 1, 0).bit_length()))


def add_components_ref(
    y: Tensor, x: Tensor, components: Sequence[ComponentPages], slot: Tensor, pages: Tensor
) -> None:
    """Semantics: as `add_components_triton`, in float32 but for the scaled sums, which have x's dtype."""
    known = (slot >= 0) & (slot < len(components[0].scale))
    rows = slot.where(known, 0).long()
    column = 0
    for part in components:
        target = y[:, column : column + part.u.shape[2]]
        column += part.u.shape[2]
        added = torch.zeros(target.shape, device=y.device)
        for page in pages[1 : 1 + int(pages[0])].tolist():
            scales = part.scale[rows, page * PAGE : (page + 1) * PAGE]
            scales = scales.where(known[:, None], torch.nan)
            sums = torch.where(scales != 0, (x.float() @ part.vt[page].float().T) * scales, 0.0)
            added += sums.to(x.dtype).float() @ part.u[page].float()
        target.copy_(target.float() + added)


def add_components_triton(
    y: Tensor, x: Tensor, components: Sequence[ComponentPages], slot: Tensor, pages: Tensor
) -> None:
    """Launches y += U (scale * (Vt x)) of the pages of a step on a CUDA device, in two launches.

    y: [tokens, sum of M_g], x's dtype; rows may lie apart.
    x: [tokens, in_features], bf16, float16 or float32; rows may lie apart.
    components: of one to three linears, all in one allocation: vt [pages, 16, N] and u [pages, 16, M_g] in x's dtype.
    slot: [tokens], int32; a slot outside the table makes the row NaN, if there is a page.
    pages: [1 + n], int32: the number of pages, then the pages; what stands behind them is not read.
    Sums are float32, in an order that depends on no other row.
    Raises: ValueError on a wrong shape, stride or dtype, NotImplementedError on a wrong device.
    """
    _check(y, x, components, slot, pages)
    (T, N), most, groups = x.shape, len(pages) - 1, len(components)
    if T == 0 or most == 0:
        return
    first = components[0]
    splits = max(1, triton.cdiv(N, BLOCK_N * STEPS))
    h = torch.empty(splits, most, groups, T, PAGE, dtype=torch.float32, device=x.device)
    block_t = tile_tokens(T, x.dtype)
    scale = tuple(part.scale for part in components)
    tiles_t = triton.cdiv(T, block_t)
    strides = {"stride_page": first.vt.stride(0), "stride_scale": first.scale.stride(0)}
    tile = {"SPLITS": splits, "BLOCK_T": block_t, "num_warps": 4, "num_stages": 3}
    outputs = tuple(part.u.shape[2] for part in components)
    with on_device_of(x):
        options = launch_options(x.device.index)
        _component_sums_kernel[(most, groups * splits, tiles_t)](
            x,
            tuple(part.vt for part in components),
            scale,
            slot,
            pages,
            h,
            T,
            N,
            len(first.scale),
            most,
            x.stride(0),
            **strides,
            **tile,
            BLOCK_N=BLOCK_N,
            STEPS=STEPS,
            **options,
        )
        _add_components_kernel[(sum(triton.cdiv(M, BLOCK_M) for M in outputs), tiles_t)](
            y,
            tuple(part.u for part in components),
            scale,
            slot,
            pages,
            h,
            outputs,
            T,
            len(first.scale),
            most,
            y.stride(0),
            **strides,
            **tile,
            BLOCK_M=BLOCK_M,
            **options,
        )


def _check(y: Tensor, x: Tensor, components: Sequence[ComponentPages], slot: Tensor, pages: Tensor) -> None:
    op = "add_components"
    check_input(op, x)
    if not 1 <= len(components) <= MAX_GROUPS:
        raise ValueError(f"{op}: components must be of 1 to {MAX_GROUPS} linears, not {len(components)}")
    count, table = len(components[0].vt), components[0].scale
    strides = {(part.vt.stride(0), part.u.stride(0), part.scale.stride(0)) for part in components}
    if len(strides) > 1 or components[0].vt.stride(0) != components[0].u.stride(0):
        raise ValueError(f"{op}: the pages of all components must lie in one allocation")
    for g, part in enumerate(components):
        if not (part.vt[0].is_contiguous() and part.u[0].is_contiguous()):
            raise ValueError(f"{op}: vt and u of {g} must be contiguous within a page")
        check_tensor(op, f"vt of {g}", part.vt, (count, PAGE, x.shape[1]), x.dtype, x)
        check_tensor(op, f"u of {g}", part.u, (count, PAGE, part.u.shape[2]), x.dtype, x)
        check_tensor(op, f"scale of {g}", part.scale, (len(table), count * PAGE), torch.float32, x)
    check_tensor(op, "y", y, (len(x), sum(part.u.shape[2] for part in components)), x.dtype, x)
    check_tensor(op, "slot", slot, (len(x),), torch.int32, x)
    check_tensor(op, "pages", pages, (len(pages),), torch.int32, x)
