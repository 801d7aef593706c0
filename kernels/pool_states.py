"""Running sums of hidden states on the device, for first passes that average a prompt's states.

    sums[row[b]] = (0 if first[b] else sums[row[b]]) + sum over chunk b's first count[b] tokens of (residual[t] + x[t])

    x, residual [T, hidden]   sums [S, hidden]   query_start [B + 1]   row, first, count [B]

B chunks, chunk b being tokens query_start[b] to query_start[b + 1]. A state is float32, the sum float64, one token
after the other: the same bits as numpy's running sum, however a prompt is cut in chunks. Bytes: T hidden (4 + x's)
once, 16 B hidden of sums. See docs/kernels/layer.md.
"""

import torch
from torch import Tensor

from .triton.checks import check_input, check_tensor, on_device_of
from .triton.optional_triton import tl, triton
from .triton.pdl import launch_options, wait_at_start

# Columns of a program, one a thread: few, since a column's sum is one chain of additions.
BLOCK_N = 64


def pool_states_ref(
    x: Tensor, residual: Tensor, sums: Tensor, query_start: Tensor, row: Tensor, first: Tensor, count: Tensor
) -> None:
    """Semantics: adds each chunk's states to its sum, in float64; arguments as in `pool_states_triton`."""
    state = (residual + x).double()
    chunks = zip(query_start.tolist(), row.tolist(), first.tolist(), count.tolist(), strict=False)
    for start, s, fresh, tokens in chunks:
        for j in range(tokens):
            sums[s] = state[start + j] if fresh and j == 0 else sums[s] + state[start + j]


@triton.jit
def _state(
    x: tl.tensor,
    residual: tl.tensor,
    t: tl.tensor,
    n: tl.tensor,
    N: tl.tensor,
    stride_x: tl.tensor,
    stride_residual: tl.tensor,
) -> tl.tensor:
    """The hidden state of a token, columns n, rounded to float32, as float64."""
    value = tl.load(x + t * stride_x + n, mask=n < N, other=0.0).to(tl.float32)
    return (tl.load(residual + t * stride_residual + n, mask=n < N, other=0.0) + value).to(tl.float64)


@triton.jit
def _pool_states_kernel(
    x: tl.tensor,
    residual: tl.tensor,
    sums: tl.tensor,
    query_start: tl.tensor,
    row: tl.tensor,
    first: tl.tensor,
    count: tl.tensor,
    N: tl.tensor,
    stride_x: tl.tensor,
    stride_residual: tl.tensor,
    stride_sums: tl.tensor,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """A tile of columns of one chunk's sum."""
    wait_at_start(PDL)
    b = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens = tl.load(count + b)
    if tokens > 0:
        start = tl.load(query_start + b).to(tl.int64)
        target = sums + tl.load(row + b).to(tl.int64) * stride_sums + n
        # A fresh sum begins with its first state: 0 + -0.0 would lose the sign.
        total = _state(x, residual, start, n, N, stride_x, stride_residual)
        if tl.load(first + b) == 0:
            total = tl.load(target, mask=n < N, other=0.0) + total
        for j in range(1, tokens):
            total += _state(x, residual, start + j, n, N, stride_x, stride_residual)
        tl.store(target, total, mask=n < N)


def pool_states_triton(
    x: Tensor, residual: Tensor, sums: Tensor, query_start: Tensor, row: Tensor, first: Tensor, count: Tensor
) -> None:
    """Launches on a CUDA device (or in Triton's interpreter, on CPU tensors).

    x: [tokens, hidden], bf16, float16 or float32; rows may lie apart.
    residual: [tokens, hidden], float32, the stream that x is yet to be added to; neither is changed.
    sums: [rows, hidden], float64; changed in place.
    query_start: [chunks + 1], int32, where the tokens of each chunk begin.
    row: [chunks], int32, a chunk's row of `sums`, no two the same.
    first: [chunks], int32, whether the sum starts anew.
    count: [chunks], int32, how many of the chunk's tokens, from its first on, are added. 0 leaves the sum as it is,
        whatever row, first and query_start say: a padding row.
    Raises: ValueError on a wrong shape, stride or dtype, NotImplementedError on a wrong device.
    """
    _check(x, residual, sums, query_start, row, first, count)
    B, N = row.shape[0], x.shape[1]
    if B == 0 or x.numel() == 0:
        return
    with on_device_of(x):
        _pool_states_kernel[(triton.cdiv(N, BLOCK_N), B)](
            x,
            residual,
            sums,
            query_start,
            row,
            first,
            count,
            N,
            x.stride(0),
            residual.stride(0),
            sums.stride(0),
            BLOCK_N=BLOCK_N,
            num_warps=BLOCK_N // 32,
            **launch_options(x.device.index),
        )


def _check(
    x: Tensor, residual: Tensor, sums: Tensor, query_start: Tensor, row: Tensor, first: Tensor, count: Tensor
) -> None:
    op = "pool_states"
    check_input(op, x)
    check_tensor(op, "residual", residual, tuple(x.shape), torch.float32, x)
    check_tensor(op, "sums", sums, (sums.shape[0], x.shape[1]), torch.float64, x)
    check_tensor(op, "query_start", query_start, (row.shape[0] + 1,), torch.int32, x)
    for name, tensor in (("row", row), ("first", first), ("count", count)):
        check_tensor(op, name, tensor, (row.shape[0],), torch.int32, x)
