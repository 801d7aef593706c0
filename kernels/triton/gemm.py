"""The dense product in Triton, whose epilogue scales by token and output.

    y[t, m] = (sum over n of w[m, n] x[t, n]) * scale[t, m] + bias[m]

    x [T, N]   w [M, N]   bias [M]   ->   y [T, M]

scale[t] is one, the row of the token's slot, or the token's own mixture of a few rows. It is the only product that
the factored linear needs, and the first one of the delta. Bytes: M N weights once, T (N + M) activations; FLOPs:
2 T M N. See docs/kernels/svf_linear.md.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import Factor, check_factor, check_input, check_tensor, matrix_shape, on_device_of
from .gemm_config import Device, Scales, TileConfig, device_of, parts_config, tile_config
from .gemm_tile import added_parts, arrive_last, leave_part, mixed_scales, part_sum, slot_scales, store_tile
from .optional_triton import tl, triton
from .semaphores import counters


@triton.jit(do_not_specialize=["T", "S", "part_steps"])
def _product_kernel(
    x: tl.tensor,
    w: tl.tensor,
    w_scale: tl.tensor,
    y: tl.tensor,
    table: tl.tensor,
    slot: tl.tensor,
    alpha: tl.tensor,
    bias: tl.tensor,
    workspace: tl.tensor,
    counter: tl.tensor,
    T: tl.tensor,
    M: tl.tensor,
    N: tl.tensor,
    width: tl.tensor,
    S: tl.tensor,
    parts: tl.tensor,
    part_steps: tl.tensor,
    stride_x: tl.tensor,
    stride_w: tl.tensor,
    stride_y: tl.tensor,
    stride_table: tl.tensor,
    stride_alpha: tl.tensor,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    SCALE: tl.constexpr,
    SKIP_BASE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PLAN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    """A tile of tokens and outputs a program, or with PLAN "side by side" a part of the inputs of a tile."""
    # Token tiles come first: the programs that share a weight tile run together, and it leaves memory once.
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    if SKIP_BASE:
        adapted = tl.load(slot + t, mask=t < T, other=0) != 0
        if tl.max(adapted.to(tl.int32), 0) == 0:
            return
    if PLAN == "in turn":
        acc = tl.zeros((BLOCK_M, BLOCK_T), dtype=tl.float32)
        for part in range(parts):
            acc += part_sum(
                x, w, w_scale, t, m, part, part_steps, T, M, N, width, stride_x, stride_w,
                FORMAT, GROUP, BLOCK_T, BLOCK_M, BLOCK_N, UPCAST,
            )  # fmt: skip
    else:
        acc = part_sum(
            x, w, w_scale, t, m, tl.program_id(2), part_steps, T, M, N, width, stride_x, stride_w,
            FORMAT, GROUP, BLOCK_T, BLOCK_M, BLOCK_N, UPCAST,
        )  # fmt: skip
    if PLAN == "whole":
        # As in the other plans a part is added to zero, which turns -0 into 0.
        acc += 0.0
    if PLAN == "side by side":
        tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        tiles = tl.num_programs(0) * tl.num_programs(1)
        leave_part(acc, workspace, tl.program_id(2) * tiles + tile, BLOCK_M, BLOCK_T)
        if not arrive_last(counter + tile, parts):
            return
        acc = added_parts(workspace, tile, tiles, parts, BLOCK_M, BLOCK_T)
    if FORMAT != "plain" and GROUP == 0:
        acc = acc * tl.load(w_scale + m, mask=m < M, other=0.0)[:, None]
    if SCALE == "slot":
        acc = acc * slot_scales(table, slot, t, m, T, M, S, stride_table)
    if SCALE == "mixture":
        acc = acc * mixed_scales(table, alpha, t, m, T, M, S, stride_table, stride_alpha, BLOCK_M, BLOCK_T)
    store_tile(acc, y, bias, t, m, T, M, stride_y, HAS_BIAS)


@dataclass(frozen=True, slots=True)
class Operand:
    """A weight matrix as the kernels take it. kind: FORMAT; group: GROUP, 0 unless groups have scales."""

    data: Tensor
    scale: Tensor | None
    kind: str
    group: int

    @property
    def scales(self) -> Scales:
        return "none" if self.scale is None else "group" if self.group else "row"

    def aligned(self, x: Tensor) -> bool:
        """Whether the rows of x and of the weights begin at multiples of 16 values."""
        sizes = (x.data_ptr(), self.data.data_ptr(), x.stride(0), self.data.stride(0), x.shape[1])
        return all(size % 16 == 0 for size in sizes)


def operand(weight: Factor) -> Operand:
    """The kernels' view of a factor. Triton knows fp8 on newer chips only, so its bytes are taken apart by hand."""
    # Without inputs there are no scales either.
    if isinstance(weight, Tensor) or weight.shape[1] == 0:
        return Operand(weight if isinstance(weight, Tensor) else weight.data, None, "plain", 0)
    data = weight.data.view(torch.uint8) if weight.format == "fp8" else weight.data
    return Operand(data, weight.scale, weight.format, 0 if weight.scale_a_row else weight.group)


@dataclass(frozen=True, slots=True)
class Split:
    """How the parts of a tile run, and what they need for it: sums [parts, tiles, tile] and a counter a tile."""

    plan: str
    workspace: Tensor | None
    counter: Tensor | None

    @classmethod
    def of(cls, parts: int, tiles: tuple[int, int], config: TileConfig, x: Tensor, device: Device) -> "Split":
        programs = tiles[0] * tiles[1]
        if parts == 1 or programs >= device.processors:
            return cls("whole" if parts == 1 else "in turn", None, None)
        workspace = x.new_empty(parts * programs * config.block_t * config.block_m, dtype=torch.float32)
        return cls("side by side", workspace, counters(programs, x.device))


def product(
    x: Tensor,
    weight: Factor,
    *,
    table: Tensor | None = None,
    slot: Tensor | None = None,
    alpha: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    skip_base: bool = False,
) -> Tensor:
    """y = x @ w.T times the table's row of a slot or of a mixture, plus bias. Launches once, checks nothing.

    skip_base: tiles whose tokens are all in slot 0 are not computed and stay undefined.
    """
    (T, N), M = x.shape, weight.shape[0]
    y = x.new_empty(T, M, dtype=out_dtype)
    if y.numel() == 0:
        return y
    device = device_of(x.device.index)
    w = operand(weight)
    config = tile_config(T, M, x.dtype, w.scales, device, w.aligned(x))
    part = parts_config(M, N, device)
    parts, tiles = max(1, triton.cdiv(N, part)), config.tiles(T, M)
    split = Split.of(parts, tiles, config, x, device)
    _product_kernel[(*tiles, parts if split.workspace is not None else 1)](
        x,
        w.data,
        w.scale,
        y,
        table,
        slot,
        alpha,
        bias,
        split.workspace,
        split.counter,
        T,
        M,
        N,
        w.data.shape[1],
        0 if table is None else table.shape[0],
        parts,
        part // config.block_n,
        x.stride(0),
        w.data.stride(0),
        y.stride(0),
        0 if table is None else table.stride(0),
        0 if alpha is None else alpha.stride(0),
        FORMAT=w.kind,
        GROUP=w.group,
        SCALE="one" if table is None else "slot" if alpha is None else "mixture",
        SKIP_BASE=skip_base,
        HAS_BIAS=bias is not None,
        PLAN=split.plan,
        BLOCK_T=config.block_t,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        UPCAST=not x.is_cuda,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return y


def linear_triton(
    x: Tensor, weight: Factor, bias: Tensor | None = None, *, out_dtype: torch.dtype | None = None
) -> Tensor:
    """Launches y = x @ weight.T + bias on a CUDA device (or in Triton's interpreter, on CPU tensors).

    x: [tokens, in_features], bf16, float16 or float32; weight: [out_features, in_features], x's dtype or quantised;
    bias: [out_features], x's dtype, or None; out_dtype: None for x's dtype, or float32.
    A row's result is the same bit for bit in every batch, and in `svf_delta_linear_triton` under slot 0.
    Raises: ValueError on a wrong shape, stride or dtype, NotImplementedError on a wrong device.
    """
    check_input("linear", x)
    M, _ = matrix_shape("linear", "weight", weight)
    check_factor("linear", "weight", weight, (M, x.shape[1]), x)
    if bias is not None:
        check_tensor("linear", "bias", bias, (M,), x.dtype, x)
    with on_device_of(x):
        return product(x, weight, bias=bias, out_dtype=out_dtype)
