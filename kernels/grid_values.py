"""The values of weights on a grid, as a plain matrix: for the products of many tokens by a library.

    y[m, n] = scale[m, n // 32] * code[m, n] + minimum[m, n // 32]

    weight [M, N], see layout/grid_panels.py   ->   y [M, N]

Bytes: the grid's once, and y. In float32 the values are the file's, to the bit: a product of a code and a scale is
exact.
"""

from torch import Tensor

from .layout.grid_panels import GPU_PANEL, GridPanels
from .triton.checks import check_device, check_tensor, on_device_of
from .triton.grid_sum import GRID_GROUP, grid_rows, group_numbers, step_codes
from .triton.optional_triton import tl, triton
from .triton.pdl import launch_options, wait_at_start

# Steps of 64 inputs of a program.
_STEPS = 4


def grid_values_ref(y: Tensor, weight: GridPanels) -> None:
    """Semantics: y = the matrix, in float32, then rounded once."""
    y.copy_(weight.values())


@triton.jit
def _grid_values_kernel(
    codes: tl.tensor,
    numbers: tl.tensor,
    y: tl.tensor,
    M: tl.tensor,
    N: tl.tensor,
    width: tl.tensor,
    stride_y: tl.tensor,
    FORMAT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    STEPS: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """A panel's values of some steps."""
    wait_at_start(PDL)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_m = m < M
    w_rows, number_rows = grid_rows(codes, numbers, m, N, width, FORMAT)
    y_rows = y + m.to(tl.int64)[:, None] * stride_y
    first = tl.program_id(1) * STEPS
    for step in range(first, tl.minimum(first + STEPS, tl.cdiv(N, 2 * GRID_GROUP))):
        pair = step_codes(w_rows, in_m, step, FORMAT, tl.float32)
        for i in tl.static_range(2):
            group = 2 * step + i
            scale, minimum = group_numbers(number_rows, in_m, group, FORMAT)
            value = pair[i] * scale[:, None]
            if FORMAT == "Q4_1":
                value += minimum[:, None]
            n = group * GRID_GROUP + tl.arange(0, GRID_GROUP)
            mask = in_m[:, None] & (n < N)[None, :]
            tl.store(y_rows + n[None, :], value.to(y.dtype.element_ty), mask=mask)


def grid_values_triton(y: Tensor, weight: GridPanels) -> None:
    """Semantics: y = the matrix, in one launch on a CUDA device (or in Triton's interpreter, on CPU tensors).

    y: [M, N], float32, bf16 or float16, on the weight's device; rows may lie apart.
    Raises: ValueError on a wrong shape, stride or device, NotImplementedError on a wrong device.
    """
    op, (M, N) = "grid_values", weight.shape
    check_device(op, y)
    check_tensor(op, "y", y, (M, N), y.dtype, weight.codes)
    if y.numel() == 0:
        return
    steps = weight.codes.shape[1]
    with on_device_of(y):
        _grid_values_kernel[(len(weight.codes), triton.cdiv(steps, _STEPS))](
            weight.codes,
            weight.numbers,
            y,
            M,
            N,
            weight.codes.stride(0),
            y.stride(0),
            FORMAT=weight.format,
            BLOCK_M=GPU_PANEL,
            STEPS=_STEPS,
            num_warps=4,
            **launch_options(y.device.index),
        )
