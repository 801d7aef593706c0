"""The kernel of `sample`: one program a row, which reads its logits from cache a dozen times and sorts nothing.

A logit is judged by its distance d = largest - logit >= 0, whose bits, read as an integer, are its *key*: keys are in
the order of the distances. Its weight is 2**42 exp(-d / temperature), rounded down to an integer. Sums of integers are
exact: neither the tile nor the order of the sums changes a draw, and no sum contradicts another.
"""

from ..uniform import random_word
from .optional_triton import tl, triton
from .pdl import wait_at_start

# The key of a banned token, whose distance is infinite; what lies beyond the row looks like one.
LAST_KEY = tl.constexpr(0x7F800000)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _tile_keys(
    row: tl.tensor, tile: tl.tensor, largest: tl.tensor, V: tl.tensor, BLOCK_V: tl.constexpr
) -> tl.tensor:
    """The keys of a tile of logits, int32."""
    i = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    distance = largest - tl.load(row + i, mask=i < V, other=float("-inf"))
    return distance.to(tl.int32, bitcast=True)


@triton.jit
def _weight(key: tl.tensor, scale: tl.tensor) -> tl.tensor:
    """2**42 exp(-d / temperature), int64. scale: log2(e) / temperature."""
    return (tl.exp2(-key.to(tl.float32, bitcast=True) * scale) * 4398046511104.0).to(tl.int64)


@triton.jit
def _largest(row: tl.tensor, V: tl.tensor, BLOCK_V: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The largest logit, the first id that has it, and whether it is finite, no logit NaN, and not all the same."""
    best = tl.full((BLOCK_V,), float("-inf"), tl.float32)
    best_id = tl.full((BLOCK_V,), 0, tl.int32)
    nan = tl.full((BLOCK_V,), 0, tl.int32)
    least = tl.full((BLOCK_V,), float("inf"), tl.float32)
    for tile in range(tl.cdiv(V, BLOCK_V)):
        i = tile * BLOCK_V + tl.arange(0, BLOCK_V)
        logit = tl.load(row + i, mask=i < V, other=float("-inf"))
        nan |= (logit != logit).to(tl.int32)
        least = tl.minimum(least, tl.where(i < V, logit, float("inf")))
        best_id = tl.where(logit > best, i, best_id)
        best = tl.where(logit > best, logit, best)
    largest = tl.max(best, 0)
    first = tl.min(tl.where(best == largest, best_id, V), 0)
    differ = (tl.min(least, 0) < largest) | (V == 1)
    finite = (tl.max(nan, 0) == 0) & (tl.abs(largest) < float("inf")) & differ
    return largest, first, finite


@triton.jit
def _threshold(
    row: tl.tensor,
    V: tl.tensor,
    largest: tl.tensor,
    scale: tl.tensor,
    target: tl.tensor,
    last: tl.tensor,
    BY_WEIGHT: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The least key such that the tokens up to it reach a target, and what those before it come to.

    target: a number of tokens, or of weight, that the tokens up to the key `last` reach; int64.
    Each pass over the row cuts the interval (low, high] of keys in four, and to the tokens that lay in it before.
    """
    low = tl.full((), -1, tl.int32)
    high = last
    below = tl.full((), 0, tl.int64)
    while low + 1 < high:
        quarter = (high - low) // 4
        pivot_0 = low + quarter
        pivot_1 = low + (high - low) // 2
        pivot_2 = pivot_1 + quarter
        sums_0 = tl.full((BLOCK_V,), 0, tl.int64)
        sums_1 = tl.full((BLOCK_V,), 0, tl.int64)
        sums_2 = tl.full((BLOCK_V,), 0, tl.int64)
        nearest = tl.full((BLOCK_V,), LAST_KEY, tl.int32)
        farthest = tl.full((BLOCK_V,), -1, tl.int32)
        for tile in range(tl.cdiv(V, BLOCK_V)):
            keys = _tile_keys(row, tile, largest, V, BLOCK_V)
            measure = _weight(keys, scale) if BY_WEIGHT else tl.full((BLOCK_V,), 1, tl.int64)
            sums_0 += tl.where(keys <= pivot_0, measure, 0)
            sums_1 += tl.where(keys <= pivot_1, measure, 0)
            sums_2 += tl.where(keys <= pivot_2, measure, 0)
            nearest = tl.minimum(nearest, tl.where(keys > low, keys, LAST_KEY))
            farthest = tl.maximum(farthest, tl.where(keys <= high, keys, -1))
        sum_0 = tl.sum(sums_0, 0)
        sum_1 = tl.sum(sums_1, 0)
        sum_2 = tl.sum(sums_2, 0)
        high = tl.where(sum_2 >= target, pivot_2, high)
        high = tl.where(sum_1 >= target, pivot_1, high)
        high = tl.where(sum_0 >= target, pivot_0, high)
        high = tl.minimum(high, tl.max(farthest, 0))
        below = tl.where(sum_0 < target, sum_0, below)
        below = tl.where(sum_1 < target, sum_1, below)
        below = tl.where(sum_2 < target, sum_2, below)
        low = tl.where(sum_0 < target, pivot_0, low)
        low = tl.where(sum_1 < target, pivot_1, low)
        low = tl.where(sum_2 < target, pivot_2, low)
        low = tl.maximum(low, tl.min(nearest, 0) - 1)
    return high, below


@triton.jit
def _tile_kept(
    row: tl.tensor,
    tile: tl.tensor,
    V: tl.tensor,
    largest: tl.tensor,
    scale: tl.tensor,
    threshold: tl.tensor,
    BLOCK_V: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Of a tile: the weights of what lies before the threshold, 0 elsewhere, and which tokens lie on it (1 or 0)."""
    keys = _tile_keys(row, tile, largest, V, BLOCK_V)
    return tl.where(keys < threshold, _weight(keys, scale), 0), (keys == threshold).to(tl.int32)


@triton.jit
def _kept_weight(
    row: tl.tensor,
    V: tl.tensor,
    largest: tl.tensor,
    scale: tl.tensor,
    threshold: tl.tensor,
    ties: tl.tensor,
    BLOCK_V: tl.constexpr,
) -> tl.tensor:
    """The weight of the tokens before the threshold and of the first `ties` on it, int64."""
    sums = tl.full((BLOCK_V,), 0, tl.int64)
    on = tl.full((BLOCK_V,), 0, tl.int32)
    for tile in range(tl.cdiv(V, BLOCK_V)):
        weights, tied = _tile_kept(row, tile, V, largest, scale, threshold, BLOCK_V)
        sums += weights
        on += tied
    return tl.sum(sums, 0) + tl.minimum(ties, tl.sum(on, 0)).to(tl.int64) * _weight(threshold, scale)


@triton.jit
def _token_at(
    row: tl.tensor,
    V: tl.tensor,
    largest: tl.tensor,
    scale: tl.tensor,
    threshold: tl.tensor,
    ties: tl.tensor,
    point: tl.tensor,
    BLOCK_V: tl.constexpr,
) -> tl.tensor:
    """The first token at which the sum of the kept weights, in the order of the ids, exceeds a point."""
    tie_weight = _weight(threshold, scale)
    tile = tl.full((), -1, tl.int32)
    before = tl.full((), 0, tl.int64)
    within = tl.full((), 0, tl.int64)
    tied_within = tl.full((), 0, tl.int32)
    while (before + within <= point) & (tile + 1 < tl.cdiv(V, BLOCK_V)):
        tile += 1
        before += within
        ties -= tied_within
        weights, tied = _tile_kept(row, tile, V, largest, scale, threshold, BLOCK_V)
        tied_within = tl.minimum(tl.sum(tied, 0), ties)
        within = tl.sum(weights, 0) + tied_within.to(tl.int64) * tie_weight
    weights, tied = _tile_kept(row, tile, V, largest, scale, threshold, BLOCK_V)
    kept = (tied > 0) & (tl.cumsum(tied, 0) <= ties)
    sums = before + tl.cumsum(tl.where(kept, tie_weight, weights), 0)
    i = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    return tl.min(tl.where(sums > point, i, V - 1), 0)


@triton.jit
def _sample_kernel(
    logits: tl.tensor,
    temperature: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    min_p: tl.tensor,
    seed: tl.tensor,
    index: tl.tensor,
    ids: tl.tensor,
    is_finite: tl.tensor,
    V: tl.tensor,
    stride_logits: tl.tensor,
    BLOCK_V: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """ids[b] and is_finite[b] of one row."""
    wait_at_start(PDL)
    b = tl.program_id(0).to(tl.int64)
    row = logits + b * stride_logits
    largest, token, finite = _largest(row, V, BLOCK_V)
    t = tl.load(temperature + b)
    if finite & (t > 0):
        # Below this every distance but 0 has no weight, and the quotient stays finite.
        t = tl.maximum(t, 1e-30)
        scale = (1.0 / t.to(tl.float64) * LOG2_E).to(tl.float32)
        threshold = tl.full((), LAST_KEY, tl.int32)
        ties = tl.full((), 0, tl.int32) + V
        k = tl.load(top_k + b)
        if (k > 0) & (k < V):
            threshold, before = _threshold(row, V, largest, scale, k.to(tl.int64), threshold, False, BLOCK_V)
            ties = (k - before).to(tl.int32)
        p = tl.load(top_p + b)
        if p < 1:
            whole = _kept_weight(row, V, largest, scale, threshold, ties, BLOCK_V)
            target = tl.maximum(tl.ceil(p.to(tl.float64) * whole.to(tl.float64)).to(tl.int64), 1)
            nucleus, before = _threshold(row, V, largest, scale, target, threshold, True, BLOCK_V)
            reached = tl.cdiv(target - before, tl.maximum(_weight(nucleus, scale), 1)).to(tl.int32)
            ties = tl.where(nucleus < threshold, reached, tl.minimum(reached, ties))
            threshold = nucleus
        # exp(-d / temperature) >= min_p as a bound on d, rounded down to a float32.
        share = tl.maximum(tl.load(min_p + b).to(tl.float64), 1e-300)
        bound = t.to(tl.float64) * (0.0 - tl.log(share))
        nearest = bound.to(tl.float32)
        bound_key = nearest.to(tl.int32, bitcast=True) - (nearest.to(tl.float64) > bound).to(tl.int32)
        ties = tl.where(bound_key < threshold, V, ties)
        threshold = tl.minimum(threshold, bound_key)
        kept = _kept_weight(row, V, largest, scale, threshold, ties, BLOCK_V)
        # floor(uniform * kept), exactly: the uniform is the word's first 53 bits.
        word = random_word(tl.load(seed + b), tl.load(index + b).to(tl.int64)) >> 11 << 11
        point = tl.umulhi(word, kept.to(tl.uint64)).to(tl.int64)
        token = _token_at(row, V, largest, scale, threshold, ties, point, BLOCK_V)
    tl.store(ids + b, tl.where(finite, token, 0).to(tl.int64))
    tl.store(is_finite + b, finite)
