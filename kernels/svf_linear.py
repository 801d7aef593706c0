"""The factored SVF linear: one pair of dense products, whatever the number of experts in the batch.

    y[t] = U (scale[slot[t]] * (Vt x[t])) + bias

    x [T, N]   vt [R, N]   u [M, R]   scale [S, R]   slot [T]   bias [M]   ->   y [T, M]

T tokens, M out_features, N in_features, R = min(M, N) or fewer components, S slots.

An expert only changes the scale between two products whose matrices all experts share, so no weights are
gathered and no tokens sorted. Both products are one kernel: the first ends with the row of the slot, the
second with the bias. Bytes: R (M + N) weights, T (N + 2 R + M) activations, R float32 a slot in use; FLOPs:
2 T R (M + N). See docs/kernels/svf_linear.md.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from zweave.kernels.optional_triton import tl, triton
from zweave.kernels.packed import Weight, split

DTYPES = (torch.bfloat16, torch.float32)


def svf_linear_ref(
    x: Tensor, vt: Tensor, u: Tensor, scale: Tensor, slot: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Semantics: y[t] = u @ (scale[slot[t]] * (vt @ x[t])) + bias, in float32 throughout, then x's dtype.

    x: [tokens, in_features]; vt: [rank, in_features]; u: [out_features, rank]; scale: [slots, rank];
    slot: [tokens], 0 <= slot < slots; bias: [out_features] or None.
    Source: Transformer-Squared (arXiv 2501.06252), section 3.1, with scale = sigma * z.
    """
    projected = x.float() @ vt.float().T
    y = (projected * scale.float()[slot.long()]) @ u.float().T
    if bias is not None:
        y = y + bias.float()
    return y.to(x.dtype)


@triton.jit
def _accumulate(
    x: tl.tensor,
    w: tl.tensor,
    t: tl.tensor,
    m: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    T: tl.tensor,
    M: tl.tensor,
    stride_x: tl.tensor,
    stride_w: tl.tensor,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UPCAST: tl.constexpr,
) -> tl.tensor:
    """w[m, first:last] @ x[t, first:last].T in float32, [BLOCK_M, BLOCK_T]; a range: N may be split."""
    x_rows = x + t.to(tl.int64)[:, None] * stride_x
    w_rows = w + m.to(tl.int64)[:, None] * stride_w
    acc = tl.zeros((BLOCK_M, BLOCK_T), dtype=tl.float32)
    for begin in range(first, last, BLOCK_N):
        n = begin + tl.arange(0, BLOCK_N)
        x_tile = tl.load(x_rows + n[None, :], mask=(t < T)[:, None] & (n < last)[None, :], other=0.0)
        w_tile = tl.load(w_rows + n[None, :], mask=(m < M)[:, None] & (n < last)[None, :], other=0.0)
        if UPCAST:
            x_tile = x_tile.to(tl.float32)
            w_tile = w_tile.to(tl.float32)
        acc = tl.dot(w_tile, tl.trans(x_tile), acc, input_precision="ieee")
    return acc


@triton.jit
def _finish(
    acc: tl.tensor,
    y: tl.tensor,
    scale: tl.tensor,
    slot: tl.tensor,
    bias: tl.tensor,
    t: tl.tensor,
    m: tl.tensor,
    T: tl.tensor,
    M: tl.tensor,
    S: tl.tensor,
    stride_y: tl.tensor,
    stride_scale: tl.tensor,
    HAS_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
) -> None:
    """Scales by the token's slot, adds the bias and stores. A slot outside the table gives NaN, no read."""
    mask = (m < M)[:, None] & (t < T)[None, :]
    if HAS_SCALE:
        row = tl.load(slot + t, mask=t < T, other=0)
        known = ((row >= 0) & (row < S))[None, :]
        address = scale + row.to(tl.int64)[None, :] * stride_scale + m[:, None]
        acc = acc * tl.load(address, mask=mask & known, other=float("nan"))
    if HAS_BIAS:
        acc = acc + tl.load(bias + m, mask=m < M, other=0.0).to(tl.float32)[:, None]
    tl.store(y + t.to(tl.int64)[None, :] * stride_y + m[:, None], acc.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["T", "S"])
def _svf_linear_kernel(
    x: tl.tensor,
    w: tl.tensor,
    y: tl.tensor,
    scale: tl.tensor,
    slot: tl.tensor,
    bias: tl.tensor,
    T: tl.tensor,
    M: tl.tensor,
    N: tl.tensor,
    S: tl.tensor,
    stride_x: tl.tensor,
    stride_w: tl.tensor,
    stride_y: tl.tensor,
    stride_scale: tl.tensor,
    HAS_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    """y[t, m] = (w[m] . x[t]) * scale[slot[t], m] + bias[m], a tile of tokens and outputs a program."""
    # Token tiles come first: the programs that share a weight tile run together, and it leaves memory once.
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    acc = _accumulate(x, w, t, m, 0, N, T, M, stride_x, stride_w, BLOCK_T, BLOCK_M, BLOCK_N, UPCAST)
    _finish(acc, y, scale, slot, bias, t, m, T, M, S, stride_y, stride_scale, HAS_SCALE, HAS_BIAS)


@dataclass(frozen=True, slots=True)
class TileConfig:
    """Shape of a tile (tokens, outputs, inputs a step), warps of a program and stages of its pipeline."""

    block_t: int
    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def tile_config(
    tokens: int, out_features: int, dtype: torch.dtype, capability: tuple[int, int], aligned: bool
) -> TileConfig:
    """Picks the tile of one product.

    capability: the device's, (9, 0) for Hopper. aligned: rows of x and w begin at multiples of 16 values.

    The order in which a row is summed must not depend on the number of tokens: `block_n` follows from the
    dtype alone, and the weights are always the left operand of the dot, so that every tile is made of the
    same matrix instructions and the tokens only vary their free dimension.
    """
    block_t = min(max(16, triton.next_power_of_2(tokens)), 128)
    if dtype == torch.float32:
        block_t = min(block_t, 32)
        return TileConfig(block_t, 64, 32, num_warps=block_t // 4, num_stages=2)
    # Rows out of line are loaded value by value, through registers: larger tiles would spill.
    if not aligned:
        return TileConfig(min(block_t, 32), 64, 64, num_warps=4, num_stages=2)
    # Large tiles read less, and are worth it once there are enough of them to occupy half of a large chip.
    tiles = triton.cdiv(tokens, 128) * triton.cdiv(out_features, 128)
    if tiles < 64:
        return TileConfig(min(block_t, 64), 64, 64, num_warps=4, num_stages=4)
    # Consumer chips have 99 KiB of shared memory where the data centre's have 163 and more.
    ample = capability in ((8, 0), (9, 0), (10, 0), (10, 3))
    return TileConfig(128, 128, 64, num_warps=8, num_stages=4 if ample else 3)


def svf_linear_triton(
    x: Tensor, vt: Tensor, u: Tensor, scale: Tensor, slot: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Launches both products on a CUDA device (or in Triton's interpreter, on CPU tensors).

    Arguments as in `svf_linear`, weights plain. A token whose slot lies outside the table becomes NaN.
    Raises: ValueError on a wrong shape, stride or dtype, NotImplementedError on a wrong device.
    """
    _check(x, vt, u, scale, slot, bias)
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        return _product(_product(x, vt, scale=scale, slot=slot), u, bias=bias)


def _product(
    x: Tensor,
    w: Tensor,
    *,
    scale: Tensor | None = None,
    slot: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """y = x @ w.T, times scale[slot], plus bias, in x's dtype."""
    (T, N), M = x.shape, w.shape[0]
    y = x.new_empty(T, M)
    if y.numel() == 0:
        return y
    capability = torch.cuda.get_device_capability(x.device) if x.is_cuda else (9, 0)
    aligned = all(value % 16 == 0 for value in (x.data_ptr(), w.data_ptr(), x.stride(0), w.stride(0), N))
    config = tile_config(T, M, x.dtype, capability, aligned)
    _svf_linear_kernel[(triton.cdiv(T, config.block_t), triton.cdiv(M, config.block_m))](
        x,
        w,
        y,
        scale,
        slot,
        bias,
        T,
        M,
        N,
        0 if scale is None else scale.shape[0],
        x.stride(0),
        w.stride(0),
        y.stride(0),
        0 if scale is None else scale.stride(0),
        HAS_SCALE=scale is not None,
        HAS_BIAS=bias is not None,
        BLOCK_T=config.block_t,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        # The interpreter's dot is wrong for bf16 operands.
        UPCAST=not x.is_cuda,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return y


def check_device(op: str, x: Tensor) -> None:
    """Raises NotImplementedError unless Triton kernels can run on x's device."""
    if x.is_cuda:
        capability = torch.cuda.get_device_capability(x.device)
        if capability < (8, 0):
            name = torch.cuda.get_device_name(x.device)
            arch = "sm_{}{}".format(*capability)
            raise NotImplementedError(f"{op}: {name} is {arch}, {x.dtype} kernels need sm_80 or newer")
    elif isinstance(_svf_linear_kernel, triton.JITFunction):
        raise NotImplementedError(f"{op}: no Triton kernel for device {x.device} and {x.dtype}, CUDA only")


def _check(x: Tensor, vt: Tensor, u: Tensor, scale: Tensor, slot: Tensor, bias: Tensor | None) -> None:
    if x.dtype not in DTYPES:
        raise ValueError(f"svf_linear: x on {x.device} must be bfloat16 or float32, not {x.dtype}")
    check_device("svf_linear", x)
    if x.dim() != 2 or vt.dim() != 2 or u.dim() != 2 or scale.dim() != 2:
        raise ValueError("svf_linear: x, vt, u and scale must be matrices")
    (T, N), (M, R) = x.shape, u.shape
    wanted = {
        "x": (x, (T, N), x.dtype),
        "vt": (vt, (R, N), x.dtype),
        "u": (u, (M, R), x.dtype),
        "scale": (scale, (scale.shape[0], R), torch.float32),
        "slot": (slot, (T,), torch.int32),
    }
    if bias is not None:
        wanted["bias"] = (bias, (M,), x.dtype)
    for name, (tensor, shape, dtype) in wanted.items():
        if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device != x.device:
            raise ValueError(
                f"svf_linear: {name} must be {list(shape)} {dtype} on {x.device}, "
                f"not {list(tensor.shape)} {tensor.dtype} on {tensor.device}"
            )
        if tensor.numel() and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(f"svf_linear: {name} must be contiguous in its last dimension")


def svf_linear(
    x: Tensor, vt: Weight, u: Weight, scale: Tensor, slot: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Semantics: y[t] = u @ (scale[slot[t]] * (vt @ x[t])) + bias.

    x: [tokens, in_features], bf16 or float32.
    vt: [rank, in_features], packed or plain, x's dtype.
    u: [out_features, rank], packed or plain, x's dtype.
    scale: [slots, rank], float32, sigma * z of each slot; rows may lie apart, as in a slice of a wider table.
    slot: [tokens], int32, 0 <= slot < slots.
    bias: [out_features], x's dtype, or None.
    Returns [tokens, out_features] in x's dtype. Sums are float32; between the products the values are rounded
    to x's dtype. Differentiable in x, scale and bias for plain vt and u, which stay frozen.
    Raises: ValueError or RuntimeError on a wrong shape, stride, dtype or device.
    Source: Transformer-Squared (arXiv 2501.06252), section 3.1.
    """
    vt_data, _ = split(vt)
    u_data, out_features = split(u)
    rank, in_features = scale.shape[-1], x.shape[-1]
    # The op itself cannot tell a rank of 31 from one of 32 in packed weights.
    if tuple(vt.shape) != (rank, in_features) or tuple(u.shape) != (out_features, rank):
        raise ValueError(
            f"svf_linear: x {list(x.shape)}, vt {list(vt.shape)}, u {list(u.shape)} and scale "
            f"{list(scale.shape)} do not fit: want [T, N], [R, N], [M, R] and [S, R]"
        )
    return torch.ops.zweave.svf_linear.default(x, vt_data, u_data, scale, slot, bias, out_features)
