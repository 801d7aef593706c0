"""The kernels of `decode_attention`: the splits of a row, and their combination.

A split's values are not divided by the sum of its softmax before they are combined, so that a single split gives the
same bits with and without the second kernel.
"""

from torch import Tensor, float32

from .attention_config import LOG2_E, LONGEST_WINDOW, decode_config
from .attention_tile import attend, first_seen, load_queries, normalised
from .optional_triton import tl, triton
from .pdl import launch_options, wait_at_start

SPLIT_SIZE = 512
# Splits that are combined at a time, whatever the width of the table: their order is part of the result.
BLOCK_S = 16


@triton.jit(do_not_specialize=["window", "splits"])
def _decode_attention_kernel(
    q: tl.tensor,
    k_cache: tl.tensor,
    v_cache: tl.tensor,
    block_table: tl.tensor,
    sequence: tl.tensor,
    position: tl.tensor,
    # The result, or the sums of the splits: values [B, H, splits, D], maximum and sum of the softmax [B, H, splits].
    y: tl.tensor,
    acc_splits: tl.tensor,
    max_splits: tl.tensor,
    sum_splits: tl.tensor,
    scale: tl.tensor,
    window: tl.tensor,
    splits: tl.tensor,
    H: tl.tensor,
    stride_q: tl.tensor,
    stride_table: tl.tensor,
    stride_block: tl.tensor,
    GROUP: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    SPLIT_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_J: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """A split of a row under a key-value head, or under BLOCK_M of the query heads that share it."""
    wait_at_start(PDL)
    b, split = tl.program_id(0).to(tl.int64), tl.program_id(2)
    TILES: tl.constexpr = (GROUP + BLOCK_M - 1) // BLOCK_M
    kv_head = (tl.program_id(1) // TILES).to(tl.int64)
    in_group = tl.program_id(1) % TILES * BLOCK_M + tl.arange(0, BLOCK_M)
    head = kv_head * GROUP + in_group
    in_m = in_group < GROUP

    p = tl.load(position + b)
    row = b if sequence is None else tl.load(sequence + b).to(tl.int64)
    first = first_seen(p, window)
    begin, end = first, p + 1
    if acc_splits is not None:
        begin = tl.maximum(begin, split * SPLIT_SIZE)
        end = tl.minimum(end, (split + 1) * SPLIT_SIZE)
        if begin >= end:
            return
    queries = load_queries(q + b * stride_q + head * HEAD_SIZE, in_m, HEAD_SIZE, BLOCK_D)
    in_kv = kv_head * (BLOCK_SIZE * HEAD_SIZE)
    maximum, total, acc = attend(
        queries, k_cache + in_kv, v_cache + in_kv, block_table + row * stride_table,
        tl.zeros((BLOCK_M,), dtype=tl.int32) + first, tl.zeros((BLOCK_M,), dtype=tl.int32) + p,
        begin, end, scale, stride_block, HEAD_SIZE, BLOCK_SIZE, BLOCK_D, BLOCK_J,
    )  # fmt: skip
    d = tl.arange(0, BLOCK_D)
    mask = in_m[:, None] & (d < HEAD_SIZE)[None, :]
    if acc_splits is None:
        place = ((b * H + head) * HEAD_SIZE)[:, None] + d[None, :]
        tl.store(y + place, normalised(acc, total).to(y.dtype.element_ty), mask=mask)
    else:
        place = (b * H + head) * splits + split
        tl.store(acc_splits + (place * HEAD_SIZE)[:, None] + d[None, :], acc, mask=mask)
        tl.store(max_splits + place, maximum, mask=in_m)
        tl.store(sum_splits + place, total, mask=in_m)


@triton.jit(do_not_specialize=["window", "splits"])
def _combine_splits_kernel(
    acc_splits: tl.tensor,
    max_splits: tl.tensor,
    sum_splits: tl.tensor,
    position: tl.tensor,
    y: tl.tensor,
    window: tl.tensor,
    splits: tl.tensor,
    H: tl.tensor,
    HEAD_SIZE: tl.constexpr,
    SPLIT_SIZE: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """The result of a row and head from those of its splits that hold positions which it sees."""
    wait_at_start(PDL)
    b = tl.program_id(0).to(tl.int64)
    place = b * H + tl.program_id(1)
    p = tl.load(position + b)
    begin, end = first_seen(p, window) // SPLIT_SIZE, tl.cdiv(p + 1, SPLIT_SIZE)
    d = tl.arange(0, BLOCK_D)
    maximum = tl.full((1,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((1,), dtype=tl.float32)
    acc = tl.zeros((1, BLOCK_D), dtype=tl.float32)
    for start in range(begin // BLOCK_S * BLOCK_S, end, BLOCK_S):
        split = start + tl.arange(0, BLOCK_S)
        used = (split >= begin) & (split < end)
        at = place * splits + split
        maxima = tl.load(max_splits + at, mask=used, other=float("-inf"))
        highest = tl.maximum(maximum, tl.max(maxima, 0))
        weight = tl.exp2(maxima - highest)
        correction = tl.exp2(maximum - highest)
        sums = tl.load(sum_splits + at, mask=used, other=0.0)
        mask = used[:, None] & (d < HEAD_SIZE)[None, :]
        accs = tl.load(acc_splits + (at * HEAD_SIZE)[:, None] + d[None, :], mask=mask, other=0.0)
        total = total * correction + tl.sum(weight * sums, 0)
        acc = acc * correction[:, None] + tl.sum(weight[:, None] * accs, 0)[None, :]
        maximum = highest
    result = normalised(acc, total).to(y.dtype.element_ty)
    tl.store(y + place * HEAD_SIZE + d[None, :], result, mask=(d < HEAD_SIZE)[None, :])


def launch(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    position: Tensor,
    scale: float,
    window: int,
    sequence: Tensor | None,
    splits: int,
    y: Tensor,
) -> None:
    """Fills y. splits: of the table's width; with more than one their sums are combined by a second kernel."""
    (B, H, D), (_, G, size, _) = q.shape, k_cache.shape
    config = decode_config(H // G, D, q.dtype)
    window, options = min(window, LONGEST_WINDOW), launch_options(q.device.index)
    acc_splits = max_splits = sum_splits = None
    if splits > 1:
        acc_splits = q.new_empty(B, H, splits, D, dtype=float32)
        max_splits, sum_splits = q.new_empty(2, B, H, splits, dtype=float32)
    _decode_attention_kernel[(B, G * triton.cdiv(H // G, config.block_m), splits)](
        q,
        k_cache,
        v_cache,
        block_table,
        sequence,
        position,
        y,
        acc_splits,
        max_splits,
        sum_splits,
        scale * LOG2_E,
        window,
        splits,
        H,
        q.stride(0),
        block_table.stride(0),
        k_cache.stride(0),
        GROUP=H // G,
        HEAD_SIZE=D,
        BLOCK_SIZE=size,
        SPLIT_SIZE=SPLIT_SIZE,
        BLOCK_M=config.block_m,
        BLOCK_D=config.block_d,
        BLOCK_J=config.block_j,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **options,
    )
    if splits > 1:
        _combine_splits_kernel[(B, H)](
            acc_splits,
            max_splits,
            sum_splits,
            position,
            y,
            window,
            splits,
            H,
            HEAD_SIZE=D,
            SPLIT_SIZE=SPLIT_SIZE,
            BLOCK_S=BLOCK_S,
            BLOCK_D=config.block_d,
            num_warps=4,
            **options,
        )
