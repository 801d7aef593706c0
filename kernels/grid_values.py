"""The values of weights on a grid as a plain matrix: for products of many tokens by a library, and for an embedding.

    y[i, n] = scale[m, n // 32] * code[m, n] + minimum[m, n // 32]        m = index[i], or i of all rows

    weight [M, N], see layout/grid_panels.py   index [T]   ->   y [T, N], or [M, N]

Bytes: the grid's rows once, and y. In float32 the values are the file's, to the bit: a product of a code and a scale is
exact.
"""

import torch
from torch import Tensor

from .layout.grid_panels import GPU_PANEL, GridPanels
from .triton.checks import check_device, check_tensor, on_device_of
from .triton.grid_sum import GRID_GROUP, grid_rows, group_numbers, step_codes
from .triton.optional_triton import tl, triton
from .triton.pdl import launch_options, wait_at_start

# Steps of 64 inputs of a program.
_STEPS = 4


def grid_values_ref(y: Tensor, weight: GridPanels, index: Tensor | None = None) -> None:
    """Semantics: y = the matrix, or some of its rows, in float32, then rounded once."""
    y.copy_(weight.values() if index is None else weight.rows(index))


@triton.jit(do_not_specialize=["T"])
def _grid_values_kernel(
    codes: tl.tensor,
    numbers: tl.tensor,
    index: tl.tensor,
    y: tl.tensor,
    T: tl.tensor,
    N: tl.tensor,
    width: tl.tensor,
    stride_y: tl.tensor,
    FORMAT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    STEPS: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """The values of BLOCK_M rows at some steps."""
    wait_at_start(PDL)
    i = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_m, m = i < T, i
    if index is not None:
        m = tl.load(index + i, mask=in_m, other=0).to(tl.int32)
    w_rows, number_rows = grid_rows(codes, numbers, m, N, width, FORMAT)
    y_rows = y + i.to(tl.int64)[:, None] * stride_y
    first = tl.program_id(1) * STEPS
    for step in range(first, tl.minimum(first + STEPS, tl.cdiv(N, 2 * GRID_GROUP))):
        pair = step_codes(w_rows, in_m, step, FORMAT, tl.float32)
        for half in tl.static_range(2):
            group = 2 * step + half
            scale, minimum = group_numbers(number_rows, in_m, group, FORMAT)
            value = pair[half] * scale[:, None]
            if FORMAT == "Q4_1":
                value += minimum[:, None]
            n = group * GRID_GROUP + tl.arange(0, GRID_GROUP)
            mask = in_m[:, None] & (n < N)[None, :]
            tl.store(y_rows + n[None, :], value.to(y.dtype.element_ty), mask=mask)


def grid_values_triton(y: Tensor, weight: GridPanels, index: Tensor | None = None) -> None:
    """Semantics: y = the matrix, or the rows of an index, in one launch on a CUDA device (or in Triton's interpreter).

    y: [M, N], or [T, N], float32, bf16 or float16, on the weight's device; rows may lie apart.
    index: [T] int64, 0 <= index < M, or None.
    Raises: ValueError on a wrong shape, stride or device, NotImplementedError on a wrong device.
    """
    op, (M, N) = "grid_values", weight.shape
    check_device(op, y)
    rows = M if index is None else index.numel()
    check_tensor(op, "y", y, (rows, N), y.dtype, weight.codes)
    if index is not None:
        check_tensor(op, "index", index, (rows,), torch.int64, y)
    if y.numel() == 0:
        return
    steps = weight.codes.shape[1]
    with on_device_of(y):
        _grid_values_kernel[(triton.cdiv(rows, GPU_PANEL), triton.cdiv(steps, _STEPS))](
            weight.codes,
            weight.numbers,
            index,
            y,
            rows,
            N,
            weight.codes.stride(0),
            y.stride(0),
            FORMAT=weight.format,
            BLOCK_M=GPU_PANEL,
            STEPS=_STEPS,
            num_warps=4,
            **launch_options(y.device.index),
        )
