"""The SVF linear as the dense product and a delta of few or cheap components.

    y[t] = W x[t] + U (delta[slot[t]] * (Vt x[t])) + bias

    x [T, N]   w [M, N]   vt [K, N]   u [M, K]   delta [S, K]   slot [T]   bias [M]   ->   y [T, M]

T tokens, M out_features, N in_features, K components kept, S slots; delta = sigma * (z - 1), row 0 = 0.

Two launches: h = delta * (Vt x), and [W | U] [x ; h], whose tiles sum the delta beside the dense product and store
once. A token in slot 0 gets W x + bias, to the bit what the dense product alone gives, whatever h holds; tiles of
such tokens alone skip the delta in both launches. Bytes: M N weights and f K (M + N) of the factors, f = 1 in int8
and fp8, 1/2 in int4 (and 4 a scale), T (2 N + 2 K + M) activations; FLOPs: 2 T (M N + K (M + N)).
See docs/kernels/svf_delta_linear.md.
"""

import torch
from torch import Tensor

from .layout.packed import FactorWeight, Weight, split, split_factor
from .triton.checks import Factor, check_factor, check_input, check_tensor, matrix_shape, on_device_of, plain
from .triton.gemm import Split, operand, product
from .triton.gemm_config import delta_tile_config, device_of, parts_config
from .triton.gemm_tile import added_parts, arrive_last, leave_part, part_sum, store_tile
from .triton.optional_triton import tl, triton


def svf_delta_linear_ref(
    x: Tensor, w: Tensor, vt: Factor, u: Factor, delta: Tensor, slot: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Semantics: y[t] = w @ x[t] + u @ (delta[slot[t]] * (vt @ x[t])) + bias in float32, then x's dtype.

    x: [tokens, in_features]; w: [out_features, in_features]; vt: [kept, in_features]; u: [out_features, kept];
    delta: [slots, kept], sigma * (z - 1); slot: [tokens], 0 <= slot < slots; bias: [out_features] or None.
    Tokens in slot 0 take w alone. vt and u may be quantised.
    Source: Transformer-Squared (arXiv 2501.06252), section 3.1, with the identity split off.
    """
    y = x.float() @ w.float().T
    through = ((x.float() @ plain(vt).T) * delta.float()[slot.long()]) @ plain(u).T
    y = torch.where((slot != 0)[:, None], y + through, y)
    if bias is not None:
        y = y + bias.float()
    return y.to(x.dtype)


@triton.jit(do_not_specialize=["T", "part_steps"])
def _svf_delta_linear_kernel(
    x: tl.tensor,
    w: tl.tensor,
    h: tl.tensor,
    u: tl.tensor,
    u_scale: tl.tensor,
    y: tl.tensor,
    slot: tl.tensor,
    bias: tl.tensor,
    workspace: tl.tensor,
    counter: tl.tensor,
    T: tl.tensor,
    M: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    u_width: tl.tensor,
    w_parts: tl.tensor,
    u_parts: tl.tensor,
    part_steps: tl.tensor,
    stride_x: tl.tensor,
    stride_w: tl.tensor,
    stride_h: tl.tensor,
    stride_u: tl.tensor,
    stride_y: tl.tensor,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PLAN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    """A tile of tokens and outputs a program, or with PLAN "side by side" a part of the inputs of w or u."""
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    adapted = tl.load(slot + t, mask=t < T, other=0) != 0
    some = tl.max(adapted.to(tl.int32), 0) != 0
    through = tl.zeros((BLOCK_M, BLOCK_T), dtype=tl.float32)
    if PLAN == "side by side":
        part = tl.program_id(2)
        if part < w_parts:
            acc = part_sum(
                x, w, u_scale, t, m, part, part_steps, T, M, N, N, stride_x, stride_w,
                "plain", 0, BLOCK_T, BLOCK_M, BLOCK_N, UPCAST,
            )  # fmt: skip
        elif some:
            acc = part_sum(
                h, u, u_scale, t, m, part - w_parts, part_steps, T, M, K, u_width, stride_h, stride_u,
                FORMAT, GROUP, BLOCK_T, BLOCK_M, BLOCK_N, UPCAST,
            )  # fmt: skip
        else:
            acc = through
        tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        tiles = tl.num_programs(0) * tl.num_programs(1)
        leave_part(acc, workspace, part * tiles + tile, BLOCK_M, BLOCK_T)
        if not arrive_last(counter + tile, w_parts + u_parts):
            return
        base = added_parts(workspace, tile, tiles, w_parts, BLOCK_M, BLOCK_T)
        through = added_parts(workspace, w_parts * tiles + tile, tiles, u_parts, BLOCK_M, BLOCK_T)
    else:
        base = tl.zeros((BLOCK_M, BLOCK_T), dtype=tl.float32)
        for part in range(w_parts):
            base += part_sum(
                x, w, u_scale, t, m, part, part_steps, T, M, N, N, stride_x, stride_w,
                "plain", 0, BLOCK_T, BLOCK_M, BLOCK_N, UPCAST,
            )  # fmt: skip
        if some:
            for part in range(u_parts):
                through += part_sum(
                    h, u, u_scale, t, m, part, part_steps, T, M, K, u_width, stride_h, stride_u,
                    FORMAT, GROUP, BLOCK_T, BLOCK_M, BLOCK_N, UPCAST,
                )  # fmt: skip
    if FORMAT != "plain" and GROUP == 0:
        through = through * tl.load(u_scale + m, mask=m < M, other=0.0)[:, None]
    # Chosen, not multiplied by zero: what stands in h for a token of the base is not defined.
    acc = tl.where(adapted[None, :], base + through, base)
    store_tile(acc, y, bias, t, m, T, M, stride_y, HAS_BIAS)


def svf_delta_linear_triton(
    x: Tensor, w: Tensor, vt: Factor, u: Factor, delta: Tensor, slot: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Launches both kernels on a CUDA device (or in Triton's interpreter, on CPU tensors).

    x: [tokens, in_features], bf16, float16 or float32; w: [out_features, in_features], x's dtype.
    vt: [kept, in_features], u: [out_features, kept]: x's dtype, or quantised with one scale a row or groups of a
    multiple of 64.
    delta: [slots, kept], float32; rows may lie apart. slot: [tokens], int32. bias: [out_features], x's dtype, or None.
    A token whose slot lies outside the table becomes NaN; in slot 0 it is what `linear_triton` gives, bit for bit.
    Raises: ValueError on a wrong shape, stride or dtype, NotImplementedError on a wrong device.
    """
    _check(x, w, vt, u, delta, slot, bias)
    with on_device_of(x):
        if delta.shape[1] == 0:
            return product(x, w, bias=bias)
        return _add_through(x, w, product(x, vt, table=delta, slot=slot, skip_base=True), u, slot, bias)


def _add_through(x: Tensor, w: Tensor, h: Tensor, u: Factor, slot: Tensor, bias: Tensor | None) -> Tensor:
    """y = x @ w.T + bias, and h @ u.T more for tokens whose slot is not 0."""
    (T, N), (M, K) = x.shape, u.shape
    y = x.new_empty(T, M)
    if y.numel() == 0:
        return y
    device, left, right = device_of(x.device.index), operand(w), operand(u)
    aligned = left.aligned(x) and right.aligned(h)
    config = delta_tile_config(T, M, x.dtype, right.scales, device, aligned)
    # Parts of u are as long as those of w, so that no program waits for a longer one.
    part = parts_config(M, N, device)
    w_parts, u_parts = max(1, triton.cdiv(N, part)), triton.cdiv(K, part)
    tiles = config.tiles(T, M)
    split = Split.of(w_parts + u_parts, tiles, config, x, device)
    _svf_delta_linear_kernel[(*tiles, 1 if split.workspace is None else w_parts + u_parts)](
        x,
        w,
        h,
        right.data,
        right.scale,
        y,
        slot,
        bias,
        split.workspace,
        split.counter,
        T,
        M,
        N,
        K,
        right.data.shape[1],
        w_parts,
        u_parts,
        part // config.block_n,
        x.stride(0),
        w.stride(0),
        h.stride(0),
        right.data.stride(0),
        y.stride(0),
        FORMAT=right.kind,
        GROUP=right.group,
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


def _check(
    x: Tensor, w: Tensor, vt: Factor, u: Factor, delta: Tensor, slot: Tensor, bias: Tensor | None
) -> None:
    op = "svf_delta_linear"
    check_input(op, x)
    M, K = matrix_shape(op, "u", u)
    check_tensor(op, "w", w, (M, x.shape[1]), x.dtype, x)
    check_factor(op, "vt", vt, (K, x.shape[1]), x)
    check_factor(op, "u", u, (M, K), x)
    check_tensor(op, "delta", delta, (delta.shape[0], K), torch.float32, x)
    check_tensor(op, "slot", slot, (x.shape[0],), torch.int32, x)
    if bias is not None:
        check_tensor(op, "bias", bias, (M,), x.dtype, x)


def svf_delta_linear(
    x: Tensor,
    w: Weight,
    vt: FactorWeight,
    u: FactorWeight,
    delta: Tensor,
    slot: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Semantics: y[t] = w @ x[t] + u @ (delta[slot[t]] * (vt @ x[t])) + bias.

    x: [tokens, in_features], bf16 or float32.
    w: [out_features, in_features], packed or plain, x's dtype.
    vt: [kept, in_features], u: [out_features, kept], packed or plain: x's dtype, or int8 or int4 (on CUDA fp8 too).
    delta: [slots, kept], float32, sigma * (z - 1) of each slot; rows may lie apart. Row 0 is the base: its tokens
    take w alone.
    slot: [tokens], int32, 0 <= slot < slots.
    bias: [out_features], x's dtype, or None.
    Returns [tokens, out_features] in x's dtype. Sums are float32; between the factors the values are rounded to
    x's dtype, quantised weights are not rounded further.
    Raises: ValueError or RuntimeError on a wrong shape, stride, dtype, group or device.
    Source: Transformer-Squared (arXiv 2501.06252), section 3.1, with the identity split off.
    """
    w_data, out_features = split(w)
    kept, in_features = delta.shape[-1], x.shape[-1]
    # The op itself cannot tell 31 components from 32 in packed weights.
    if (
        w.shape != (out_features, in_features)
        or vt.shape != (kept, in_features)
        or u.shape != (out_features, kept)
    ):
        raise ValueError(
            f"svf_delta_linear: x {list(x.shape)}, w {list(w.shape)}, vt {list(vt.shape)}, u {list(u.shape)} and "
            f"delta {list(delta.shape)} do not fit: want [T, N], [M, N], [K, N], [M, K] and [S, K]"
        )
    (vt_data, vt_scale, vt_group), (u_data, u_scale, u_group) = split_factor(vt), split_factor(u)
    return torch.ops.zweave.svf_delta_linear.default(
        x, w_data, vt_data, u_data, delta, slot, bias, out_features, vt_scale, u_scale, vt_group, u_group
    )
