"""What the Triton attention kernels are built of: one tile of queries over the pages of their sequence.

    y[i] = sum over j of softmax_j(scale q[i] . k[j]) v[j],   first[i] <= j <= last[i]

The rows of a tile belong to one sequence and one key-value head. Keys come in tiles that begin at multiples of BLOCK_J
absolute positions, each row's sums are chains in the order of these tiles, and a tile that a row does not see changes
no bit of its sums: a row's result depends on the rows beside it in no way. Softmax is online, in float32 and base 2.
Only pages of positions that some row of the tile sees are read, and only their entries of the block table.

The interpreter's dot is wrong for bf16 operands, so there they become float32 first.
"""

from .optional_triton import INTERPRETED, tl, triton


@triton.jit
def first_seen(position: tl.tensor, window: tl.tensor) -> tl.tensor:
    """The first position that a query sees; window: 0 for all."""
    return tl.where(window > 0, tl.maximum(position - window + 1, 0), 0)


@triton.jit
def load_queries(
    rows: tl.tensor, in_rows: tl.tensor, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr
) -> tl.tensor:
    """[BLOCK_M, BLOCK_D], zeros beyond a row. rows: where the queries begin, [BLOCK_M]; in_rows: which there are."""
    d = tl.arange(0, BLOCK_D)
    mask = in_rows[:, None] & (d < HEAD_SIZE)[None, :]
    queries = tl.load(rows[:, None] + d[None, :], mask=mask, other=0.0)
    return queries.to(tl.float32) if INTERPRETED else queries


@triton.jit
def attend(
    queries: tl.tensor,
    k_head: tl.tensor,
    v_head: tl.tensor,
    table_row: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    scale: tl.tensor,
    stride_block: tl.tensor,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_J: tl.constexpr,
) -> tl.tensor:
    """The running maximum and sum of each row's softmax, [BLOCK_M], and its sum of values, [BLOCK_M, BLOCK_D].

    queries: [BLOCK_M, BLOCK_D].
    k_head, v_head: where the key-value head lies in block 0.
    table_row: the sequence's row of the block table.
    first, last: [BLOCK_M], the positions that each row sees.
    begin, end: positions begin to end - 1, of which each is seen by some row; others are not looked at.
    scale: of the scores, times log2(e).
    """
    d = tl.arange(0, BLOCK_D)
    maximum = tl.full((queries.shape[0],), float("-inf"), dtype=tl.float32)
    total = tl.zeros((queries.shape[0],), dtype=tl.float32)
    acc = tl.zeros((queries.shape[0], BLOCK_D), dtype=tl.float32)
    for start in range(begin // BLOCK_J * BLOCK_J, end, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J)
        in_j = (j >= begin) & (j < end)
        block = tl.load(table_row + j // BLOCK_SIZE, mask=in_j, other=0).to(tl.int64)
        place = (block * stride_block + j % BLOCK_SIZE * HEAD_SIZE)[:, None] + d[None, :]
        mask = in_j[:, None] & (d < HEAD_SIZE)[None, :]
        keys = tl.load(k_head + place, mask=mask, other=0.0)
        values = tl.load(v_head + place, mask=mask, other=0.0)
        if INTERPRETED:
            keys, values = keys.to(tl.float32), values.to(tl.float32)
        score = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
        seen = (j[None, :] >= first[:, None]) & (j[None, :] <= last[:, None])
        score = tl.where(seen, score, float("-inf"))
        highest = tl.maximum(maximum, tl.max(score, 1))
        # A row that has seen nothing yet must not subtract infinity from itself.
        shift = tl.where(highest == float("-inf"), 0.0, highest)
        probability = tl.exp2(score - shift[:, None])
        correction = tl.exp2(maximum - shift)
        total = total * correction + tl.sum(probability, 1)
        acc = tl.dot(probability.to(values.dtype), values, acc * correction[:, None], input_precision="ieee")
        maximum = highest
    return maximum, total, acc


@triton.jit
def normalised(acc: tl.tensor, total: tl.tensor) -> tl.tensor:
    """The sum of values by the sum of the softmax; 0 for a row that saw nothing."""
    return acc / tl.where(total == 0.0, 1.0, total)[:, None]
