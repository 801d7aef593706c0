"""The GEMM in Triton: a product, the scales of slots, and where there is a delta a second product.

    y[t, m] = (sum over n of w[m, n] x[t, n]) * table[slot[t], m] + bias[m]
    y[t, m] = sum over n of w[m, n] x[t, n] + (sum over k of u[m, k] h[t, k] if slot[t] != 0) + bias[m]

    x [T, N]   w [M, N]   h [T, K]   u [M, K]   table [S, M]   slot [T]   bias [M]   ->   y [T, M]

Table, delta and bias may each be absent. One launch of the first form is the plain linear, two are the factored one,
and the first followed by the second is the delta linear, whose tiles keep two sums and store once. A token in slot 0
gets the bits of the plain linear, whatever h holds. Bytes: M (N + K) weights once, T (N + K + M) activations; FLOPs:
2 T M (N + K). References: `linear_ref`, `svf_linear_ref`, `svf_delta_linear_ref`. See docs/kernels/svf_linear.md.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import Factor
from .gemm_config import Scales, delta_tile_config, device_of, split_size, tile_config
from .gemm_tile import partial_sum, scale_rows, serial_sum, slot_scales, store_tile
from .optional_triton import tl, triton
from .split_k import SplitK, arrive_is_last, reduce_partials, store_partial


@triton.jit(do_not_specialize=["T", "S", "steps"])
def _gemm_kernel(
    # The product: tokens, weights and their scales or None.
    x: tl.tensor,
    w: tl.tensor,
    w_scale: tl.tensor,
    # The delta, or None: hidden values [T, K], weights and their scales or None.
    h: tl.tensor,
    u: tl.tensor,
    u_scale: tl.tensor,
    # The result, and what its epilogue reads.
    y: tl.tensor,
    table: tl.tensor,
    slot: tl.tensor,
    bias: tl.tensor,
    # Of SPLIT_K "parallel".
    workspace: tl.tensor,
    semaphores: tl.tensor,
    T: tl.tensor,
    M: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    S: tl.tensor,
    # Stored numbers in a row of w and of u; splits of each; steps of BLOCK_N inputs in a split.
    w_width: tl.tensor,
    u_width: tl.tensor,
    w_splits: tl.tensor,
    u_splits: tl.tensor,
    steps: tl.tensor,
    stride_x: tl.tensor,
    stride_w: tl.tensor,
    stride_u: tl.tensor,
    stride_table: tl.tensor,
    W_FORMAT: tl.constexpr,
    W_GROUP: tl.constexpr,
    U_FORMAT: tl.constexpr,
    U_GROUP: tl.constexpr,
    SKIP_BASE: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """A tile of tokens and outputs a program, or with SPLIT_K "parallel" a split of one."""
    # Token tiles come first: the programs that share a weight tile run together, and it leaves memory once.
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_t, in_m = t < T, m < M
    if SKIP_BASE:
        all_base = tl.max((tl.load(slot + t, mask=in_t, other=0) != 0).to(tl.int32), 0) == 0
        if all_base:
            return
    x_rows = x + t.to(tl.int64)[:, None] * stride_x
    w_rows = w + m.to(tl.int64)[:, None] * stride_w
    if W_FORMAT != "plain":
        w_scale = scale_rows(w_scale, m, N, W_GROUP)
    if u is not None:
        adapted = tl.load(slot + t, mask=in_t, other=0) != 0
        any_adapted = tl.max(adapted.to(tl.int32), 0) != 0
        h_rows = h + t.to(tl.int64)[:, None] * K
        u_rows = u + m.to(tl.int64)[:, None] * stride_u
        if U_FORMAT != "plain":
            u_scale = scale_rows(u_scale, m, K, U_GROUP)
        delta_acc = tl.zeros((BLOCK_M, BLOCK_T), dtype=tl.float32)

    split = tl.program_id(2)
    if SPLIT_K == "serial":
        acc = serial_sum(
            x_rows, w_rows, w_scale, in_t, in_m, N, w_width, w_splits, steps, W_FORMAT, W_GROUP, BLOCK_N
        )
    elif u is None:  # noqa: SIM114  a kernel's `or` does not stop at a constant
        acc = partial_sum(
            x_rows, w_rows, w_scale, in_t, in_m, N, w_width, split, steps, W_FORMAT, W_GROUP, BLOCK_N
        )
    elif split < w_splits:
        acc = partial_sum(
            x_rows, w_rows, w_scale, in_t, in_m, N, w_width, split, steps, W_FORMAT, W_GROUP, BLOCK_N
        )
    elif any_adapted:
        u_split = split - w_splits
        acc = partial_sum(
            h_rows, u_rows, u_scale, in_t, in_m, K, u_width, u_split, steps, U_FORMAT, U_GROUP, BLOCK_N
        )
    else:
        acc = delta_acc
    if SPLIT_K == "none":
        # As in the other plans a split is added to zero, which turns -0 into 0.
        acc += 0.0
    if SPLIT_K == "serial" and u is not None:
        delta_acc = tl.zeros((BLOCK_M, BLOCK_T), dtype=tl.float32)
        if any_adapted:
            delta_acc = serial_sum(
                h_rows, u_rows, u_scale, in_t, in_m, K, u_width, u_splits, steps, U_FORMAT, U_GROUP, BLOCK_N
            )
    if SPLIT_K == "parallel":
        tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        tiles = tl.num_programs(0) * tl.num_programs(1)
        store_partial(acc, workspace, split * tiles + tile, BLOCK_M, BLOCK_T)
        if not arrive_is_last(semaphores + tile, tl.num_programs(2)):
            return
        acc = reduce_partials(workspace, tile, tiles, w_splits, BLOCK_M, BLOCK_T)
        if u is not None:
            delta_acc = reduce_partials(workspace, w_splits * tiles + tile, tiles, u_splits, BLOCK_M, BLOCK_T)

    if W_FORMAT != "plain" and W_GROUP == 0:
        acc = acc * tl.load(w_scale, mask=in_m, other=0.0)[:, None]
    if table is not None:
        acc = acc * slot_scales(table, slot, t, m, T, M, S, stride_table)
    if u is not None:
        if U_FORMAT != "plain" and U_GROUP == 0:
            delta_acc = delta_acc * tl.load(u_scale, mask=in_m, other=0.0)[:, None]
        # Chosen, not multiplied by zero: what stands in h for a token of the base is not defined.
        acc = tl.where(adapted[None, :], acc + delta_acc, acc)
    store_tile(acc, y, bias, t, m, T, M)


@dataclass(frozen=True, slots=True)
class Operand:
    """Rows of tokens and a weight matrix as the kernel takes them; without arguments, an absent operand.

    x: [T, in_features], or None.
    data: the weights or their quantised values, [out_features, width], or None.
    scale: [out_features, groups], or None.
    in_features: numbers that a row of weights stands for.
    format: "plain", "int8", "int4" or "fp8".
    group: in_features that share a scale; 0 if all of them do, or there is none.
    """

    x: Tensor | None = None
    data: Tensor | None = None
    scale: Tensor | None = None
    in_features: int = 0
    format: str = "plain"
    group: int = 0

    @classmethod
    def of(cls, x: Tensor, weight: Factor) -> "Operand":
        """Triton knows fp8 on newer chips only, so its bytes are taken apart by hand."""
        # Without inputs there are no scales either.
        if isinstance(weight, Tensor) or weight.shape[1] == 0:
            return cls(x, weight if isinstance(weight, Tensor) else weight.data, None, x.shape[1])
        data = weight.data.view(torch.uint8) if weight.format == "fp8" else weight.data
        group = 0 if weight.scale_a_row else weight.group
        return cls(x, data, weight.scale, x.shape[1], weight.format, group)

    @property
    def width(self) -> int:
        return 0 if self.data is None else self.data.shape[1]

    @property
    def stride(self) -> int:
        return 0 if self.data is None else self.data.stride(0)

    @property
    def scales(self) -> Scales:
        return "none" if self.scale is None else "group" if self.group else "row"

    @property
    def aligned(self) -> bool:
        """Whether the rows of x and of the weights begin at multiples of 16 values."""
        if self.x is None or self.data is None:
            return True
        sizes = (self.x.data_ptr(), self.data.data_ptr(), self.x.stride(0), self.stride, self.in_features)
        return all(size % 16 == 0 for size in sizes)


def gemm(
    x: Tensor,
    weight: Factor,
    *,
    delta: tuple[Tensor, Factor] | None = None,
    table: Tensor | None = None,
    slot: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    skip_base: bool = False,
) -> Tensor:
    """y = x @ weight.T, times the slots' rows of a table, plus a delta and a bias. Launches once, checks nothing.

    delta: h [T, K], contiguous, and u [M, K]; tokens whose slot is not 0 get h @ u.T more.
    skip_base: tiles whose tokens are all in slot 0 are not computed and stay undefined.
    """
    T, M = x.shape[0], weight.shape[0]
    y = x.new_empty(T, M, dtype=out_dtype)
    if y.numel() == 0:
        return y
    device = device_of(x.device.index)
    first, second = Operand.of(x, weight), Operand.of(*delta) if delta else Operand()
    if delta:
        aligned = first.aligned and second.aligned
        config = delta_tile_config(T, M, x.dtype, second.scales, device, aligned)
    else:
        config = tile_config(T, M, x.dtype, first.scales, device, first.aligned)
    # Splits of u are as long as those of w, so that no program waits for a longer one.
    size = split_size(M, first.in_features, device)
    w_splits, u_splits = max(1, triton.cdiv(first.in_features, size)), triton.cdiv(second.in_features, size)
    tiles = config.tiles(T, M)
    split_k = SplitK.plan_for(w_splits + u_splits, tiles, config, device, x.device)
    _gemm_kernel[(*tiles, split_k.programs)](
        x,
        first.data,
        first.scale,
        second.x,
        second.data,
        second.scale,
        y,
        table,
        slot,
        bias,
        split_k.workspace,
        split_k.semaphores,
        T,
        M,
        first.in_features,
        second.in_features,
        0 if table is None else table.shape[0],
        first.width,
        second.width,
        w_splits,
        u_splits,
        size // config.block_n,
        x.stride(0),
        first.stride,
        second.stride,
        0 if table is None else table.stride(0),
        W_FORMAT=first.format,
        W_GROUP=first.group,
        U_FORMAT=second.format,
        U_GROUP=second.group,
        SKIP_BASE=skip_base,
        SPLIT_K=split_k.plan,
        BLOCK_T=config.block_t,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return y
