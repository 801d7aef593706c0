"""The scales of slots between two products of a library.

    h[t] *= table[slot[t]]

    h [T, R]   table [S, R]   slot [T]   in place

T tokens, R components, S slots. The Triton products scale in their own epilogue; for many tokens the two products of an
SVF linear are a library's, and this stands between them. Bytes: h once in and once out, 4 R a slot in use.
See docs/kernels/layer.md.
"""

import torch
from torch import Tensor

from .triton.checks import check_input, check_tensor, on_device_of
from .triton.optional_triton import tl, triton
from .triton.pdl import launch_options, wait_at_start
from .triton.row_config import row_config


def scale_by_slot_ref(h: Tensor, table: Tensor, slot: Tensor, zero_base: bool = False) -> None:
    """Semantics: h[t] *= table[slot[t]] in float32, rounded once; arguments as in `scale_by_slot_triton`."""
    known = (slot >= 0) & (slot < table.shape[0])
    scaled = h.float() * table[slot.where(known, 0).long()]
    scaled[~known] = float("nan")
    if zero_base:
        scaled[slot == 0] = 0
    h.copy_(scaled)


@triton.jit(do_not_specialize=["S"])
def _scale_by_slot_kernel(
    h: tl.tensor,
    table: tl.tensor,
    slot: tl.tensor,
    S: tl.tensor,
    R: tl.tensor,
    stride_h: tl.tensor,
    stride_table: tl.tensor,
    ZERO_BASE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """h[t, r] for a tile of one row. Of a row that becomes zero or NaN nothing is read."""
    wait_at_start(PDL)
    t = tl.program_id(0).to(tl.int64)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    row = tl.load(slot + t).to(tl.int64)
    known = (row >= 0) & (row < S)
    if ZERO_BASE:
        read = r < tl.where(known & (row != 0), R, 0)
        fill = tl.where(row == 0, 0.0, float("nan"))
    else:
        read = r < tl.where(known, R, 0)
        fill = float("nan")
    scale = tl.load(table + row * stride_table + r, mask=read, other=fill)
    scaled = tl.load(h + t * stride_h + r, mask=read, other=0.0).to(tl.float32) * scale
    tl.store(h + t * stride_h + r, scaled.to(h.dtype.element_ty), mask=r < R)


def scale_by_slot_triton(h: Tensor, table: Tensor, slot: Tensor, zero_base: bool = False) -> None:
    """Launches h[t] *= table[slot[t]] on a CUDA device (or in Triton's interpreter, on CPU tensors).

    h: [tokens, rank], bf16, float16 or float32; rows may lie apart.
    table: [slots, rank], float32; rows may lie apart.
    slot: [tokens], int32; a slot outside the table makes the row NaN.
    zero_base: rows of slot 0 become zero whatever they hold, so that a delta's second product adds nothing to them.
    Raises: ValueError on a wrong shape, stride or dtype, NotImplementedError on a wrong device.
    """
    _check(h, table, slot)
    if h.numel() == 0:
        return
    T, R = h.shape
    config = row_config(R)
    with on_device_of(h):
        _scale_by_slot_kernel[(T, triton.cdiv(R, config.block_n))](
            h,
            table,
            slot,
            table.shape[0],
            R,
            h.stride(0),
            table.stride(0),
            ZERO_BASE=zero_base,
            BLOCK_R=config.block_n,
            num_warps=config.num_warps,
            **launch_options(h.device.index),
        )


def _check(h: Tensor, table: Tensor, slot: Tensor) -> None:
    check_input("scale_by_slot", h)
    check_tensor("scale_by_slot", "table", table, (table.shape[0], h.shape[1]), torch.float32, h)
    check_tensor("scale_by_slot", "slot", slot, (h.shape[0],), torch.int32, h)
