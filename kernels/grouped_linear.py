"""Grouped products: up to three linears of one batch in one launch.

    y_g[t] = (w_g x_g[t]) * table[slot[t], columns of g] + bias_g
    y_g[t] = w_g x[t] + (u_g h_g[t] if slot[t] != 0) + bias_g        h_g[t] = (vt_g x[t]) * table[slot[t], columns of g]
    y_g[t] = u_g h_g[t] + bias_g
    y = [y_0 | y_1 | ...]    or, of two groups,    silu(y_0) * y_1

    x [T, N], or [T, sum of N_g]   w_g [M_g, N_g]   vt_g [K_g, N]   u_g [M_g, K_g]   table [S, sum of M_g or of K_g]
    slot [T]   bias [sum of M_g]   ->   y [T, sum of M_g], or [T, M]

The matrices of q, k and v, or of gate and up, are launched together and stay where they lie: views of wider matrices
are taken as they are. The factors of a delta may be quantised, but for the gated form. What one launch costs is paid
once, and small matrices share the chip. Bytes: the weights once, T activations; FLOPs: 2 T times the weights. A row's
result does not depend on the rows beside it.
See docs/kernels/grouped_linear.md.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .layout.quantize import Quantized
from .triton.checks import Factor, check_factor, check_input, check_tensor, matrix_shape, on_device_of, plain
from .triton.delta_gemm import launch_delta_gemm
from .triton.gemm import launch_gemm
from .triton.gemm_operand import Operand
from .triton.silu_delta_gemm import launch_silu_delta_gemm
from .triton.silu_gemm import launch_silu_gemm

MAX_GROUPS = 3


def grouped_linear_ref(
    x: Tensor,
    weights: Sequence[Factor],
    *,
    shared: bool = True,
    table: Tensor | None = None,
    slot: Tensor | None = None,
    bias: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """Semantics: as `grouped_linear_triton`, in float32 throughout, then x's dtype."""
    y = _block_diagonal(x, weights, shared)
    if table is not None and slot is not None:
        y = y * table[slot.long()]
    return _finished(y, bias, silu).to(x.dtype)


def grouped_delta_linear_ref(
    x: Tensor,
    weights: Sequence[Factor],
    vt: Sequence[Factor],
    u: Sequence[Factor],
    table: Tensor,
    slot: Tensor,
    *,
    bias: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """Semantics: as `grouped_delta_linear_triton`, in float32 but for h, then x's dtype."""
    y = _block_diagonal(x, weights, True)
    h = grouped_linear_ref(x, vt, table=table, slot=slot)
    y = torch.where((slot != 0)[:, None], y + _block_diagonal(h, u, False), y)
    return _finished(y, bias, silu).to(x.dtype)


def grouped_factored_linear_ref(
    x: Tensor,
    vt: Sequence[Factor],
    u: Sequence[Factor],
    table: Tensor,
    slot: Tensor,
    *,
    bias: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """Semantics: as `grouped_factored_linear_triton`, in float32 but for h, then x's dtype."""
    h = grouped_linear_ref(x, vt, table=table, slot=slot)
    return grouped_linear_ref(h, u, shared=False, bias=bias, silu=silu)


def _block_diagonal(x: Tensor, weights: Sequence[Factor], shared: bool) -> Tensor:
    parts = [x] * len(weights) if shared else x.split([w.shape[1] for w in weights], dim=1)
    return torch.cat([part.float() @ plain(w).T for part, w in zip(parts, weights, strict=True)], dim=1)


def _finished(y: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    if bias is not None:
        y = y + bias.float()
    if not silu:
        return y
    gate, up = y.chunk(2, dim=1)
    return torch.nn.functional.silu(gate) * up


def grouped_linear_triton(
    x: Tensor,
    weights: Sequence[Factor],
    *,
    shared: bool = True,
    table: Tensor | None = None,
    slot: Tensor | None = None,
    bias: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """Semantics: y = [w_0 x_0 | w_1 x_1 | ...], times table[slot], plus bias; in one launch on a CUDA device.

    x: [tokens, in_features], bf16, float16 or float32; rows may lie apart.
    weights: one to three matrices [M_g, N_g], x's dtype, whose rows may lie apart; or all of one quantised format, with
        one scale a row or groups of a multiple of 64; or all on a grid of one format.
    shared: all groups read x; otherwise consecutive columns of it.
    table: [slots, sum of M_g], float32; rows may lie apart. A token whose slot lies outside it becomes NaN.
    slot: [tokens], int32; with a table.
    bias: [sum of M_g], x's dtype.
    silu: of two groups of equal M and plain weights, returns silu(y_0) * y_1, which is rounded once.
    Returns [tokens, sum of M_g], or [tokens, M], in x's dtype. Sums are float32.
    Raises: ValueError on a wrong shape, stride or dtype, NotImplementedError on a wrong device.
    """
    op = "grouped_linear"
    products = _operands(op, x, weights, shared)
    _check_epilogue(op, x, weights, bias, silu)
    if (table is None) != (slot is None):
        raise ValueError(f"{op}: a table needs slots, and slots a table")
    if table is not None and slot is not None:
        columns = sum(w.shape[0] for w in weights)
        check_tensor(op, "table", table, (table.shape[0], columns), torch.float32, x)
        check_tensor(op, "slot", slot, (x.shape[0],), torch.int32, x)
    y = _result(x, weights, silu)
    with on_device_of(x):
        if silu:
            launch_silu_gemm(y, products, table=table, slot=slot, bias=bias, shared=shared)
        else:
            launch_gemm(y, products, table=table, slot=slot, bias=bias)
    return y


def grouped_delta_linear_triton(
    x: Tensor,
    weights: Sequence[Factor],
    vt: Sequence[Factor],
    u: Sequence[Factor],
    table: Tensor,
    slot: Tensor,
    *,
    bias: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """Semantics: y = [w_0 x + u_0 h_0 | ...] + bias, without u h for tokens in slot 0, with
    [h_0 | ...] = [vt_0 x | ...] * table[slot] in x's dtype; in one launch on a CUDA device.

    weights: plain, or on a grid of one format.
    vt: a matrix [K_g, N] for each of weights, or some of them as one: plain, or quantised as weights of
        `grouped_linear_triton`, and then of as many launches as there are formats among vt and u.
    u: a matrix [M_g, K_g] for each of weights, the same.
    table: [slots, sum of K_g], float32; rows may lie apart. A token whose slot lies outside it becomes NaN.
    slot: [tokens], int32. A token in slot 0 gets the bits of `grouped_linear_triton`, whatever the table holds.
    silu: as in `grouped_linear_triton`, with plain vt and u.
    Other arguments, result and errors as in `grouped_linear_triton`.
    """
    op = "grouped_delta_linear"
    products = _operands(op, x, weights, True)
    if any(isinstance(matrix, Quantized) for matrix in weights):
        raise ValueError(f"{op}: weights must be plain, or on a grid")
    if len(u) != len(weights):
        raise ValueError(f"{op}: u must be as many matrices as weights")
    rows = [weight.shape[0] for weight in weights]
    firsts = _factors(op, x, vt, u, rows, table, slot, bias, silu)
    with on_device_of(x):
        if table.shape[1] == 0:
            return grouped_linear_triton(x, weights, bias=bias, silu=silu)
        return _launched(x, products, firsts, u, table, slot, bias, silu)


def grouped_factored_linear_triton(
    x: Tensor,
    vt: Sequence[Factor],
    u: Sequence[Factor],
    table: Tensor,
    slot: Tensor,
    *,
    bias: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """Semantics: y = [u_0 h_0 | ...] + bias, with [h_0 | ...] = [vt_0 x | ...] * table[slot] in x's dtype.

    In one launch on a CUDA device, with the bits of two.

    Arguments, result and errors as in `grouped_delta_linear_triton`, but that slot 0 is a slot as any other.
    """
    op = "grouped_factored_linear"
    if not 1 <= len(u) <= MAX_GROUPS:
        raise ValueError(f"{op}: u must be 1 to {MAX_GROUPS} matrices, not {len(u)}")
    rows = [matrix_shape(op, f"u[{i}]", matrix)[0] for i, matrix in enumerate(u)]
    firsts = _factors(op, x, vt, u, rows, table, slot, bias, silu)
    with on_device_of(x):
        return _launched(x, [], firsts, u, table, slot, bias, silu)


def _factors(
    op: str,
    x: Tensor,
    vt: Sequence[Factor],
    u: Sequence[Factor],
    rows: Sequence[int],
    table: Tensor,
    slot: Tensor,
    bias: Tensor | None,
    silu: bool,
) -> list[Operand]:
    """Checks factors and what goes with them, and gives the operands of vt. rows: of each u."""
    firsts = _operands(op, x, vt, True, "x", "vt")
    _check_epilogue(op, x, u, bias, silu)
    if silu and not all(isinstance(matrix, Tensor) for matrix in vt):
        raise ValueError(f"{op}: silu wants plain vt")
    ranks, columns = [matrix.shape[1] for matrix in u], sum(matrix.shape[0] for matrix in vt)
    if sum(ranks) != columns or (silu and ranks != [matrix.shape[0] for matrix in vt]):
        raise ValueError(f"{op}: u must have as many columns as vt has rows, {columns}, not {sum(ranks)}")
    for i, (matrix, m, rank) in enumerate(zip(u, rows, ranks, strict=True)):
        check_factor(op, f"u[{i}]", matrix, (m, rank), x)
    _check_kinds(op, "u", [Operand.of(x, matrix) for matrix in u])
    check_tensor(op, "table", table, (table.shape[0], columns), torch.float32, x)
    check_tensor(op, "slot", slot, (x.shape[0],), torch.int32, x)
    return firsts


def _launched(
    x: Tensor,
    products: Sequence[Operand],
    firsts: Sequence[Operand],
    u: Sequence[Factor],
    table: Tensor,
    slot: Tensor,
    bias: Tensor | None,
    silu: bool,
) -> Tensor:
    y = _result(x, u, silu)
    launch = launch_silu_delta_gemm if silu else launch_delta_gemm
    launch(y, products, firsts, u, table=table, slot=slot, bias=bias)
    return y


def _operands(
    op: str, x: Tensor, weights: Sequence[Factor], shared: bool, x_name: str = "x", name: str = "weights"
) -> list[Operand]:
    """Checks tokens and matrices, and gives each group its columns."""
    check_input(op, x)
    if not 1 <= len(weights) <= MAX_GROUPS:
        raise ValueError(f"{op}: {name} must be 1 to {MAX_GROUPS} matrices, not {len(weights)}")
    shapes = [matrix_shape(op, f"{name}[{i}]", weight) for i, weight in enumerate(weights)]
    for i, (weight, (m, n)) in enumerate(zip(weights, shapes, strict=True)):
        check_factor(op, f"{name}[{i}]", weight, (m, x.shape[1] if shared else n), x)
    columns = [n for _, n in shapes]
    if not shared and x.shape[1] != sum(columns):
        raise ValueError(
            f"{op}: {x_name} must have {sum(columns)} columns, those of {name}, not {x.shape[1]}"
        )
    parts = [x] * len(weights) if shared else x.split(columns, dim=1)
    operands = [Operand.of(part, weight) for part, weight in zip(parts, weights, strict=True)]
    _check_kinds(op, name, operands)
    return operands


def _check_kinds(op: str, name: str, operands: Sequence[Operand]) -> None:
    if len({operand.kind for operand in operands}) > 1:
        raise ValueError(f"{op}: {name} must all be plain, or all of one format and group")


def _check_epilogue(op: str, x: Tensor, weights: Sequence[Factor], bias: Tensor | None, silu: bool) -> None:
    if silu and (len(weights) != 2 or weights[0].shape[0] != weights[1].shape[0]):
        raise ValueError(f"{op}: silu wants two matrices of as many rows")
    if silu and not all(isinstance(weight, Tensor) for weight in weights):
        raise ValueError(f"{op}: silu wants plain weights")
    if bias is not None:
        check_tensor(op, "bias", bias, (sum(w.shape[0] for w in weights),), x.dtype, x)


def _result(x: Tensor, weights: Sequence[Factor], silu: bool) -> Tensor:
    rows = [w.shape[0] for w in weights]
    return x.new_empty(x.shape[0], rows[0] if silu else sum(rows))
