"""Checks of attention, and of what stores keys and values."""

from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import Tensor

from .attention_case import BLOCK_SIZE, AttentionCase, Heads
from .check_case import CheckSource, KernelCheck, replayed


def attention_checks(source: CheckSource) -> Iterator[KernelCheck]:
    """Decoding at random positions, eager and replayed at others, a chunk of a prompt, and `rope_store`."""
    kv_heads = source.size(1, 2, 8)
    heads = Heads(kv_heads * source.size(1, 2, 3, 4), kv_heads, source.size(16, 64, 128))
    yield from _decode(source, heads)
    yield from _prefill(source, heads)
    yield from _rope_store(source, heads)


def _decode(source: CheckSource, heads: Heads) -> Iterator[KernelCheck]:
    rows, length = source.between(1, 20), source.between(1, 1500)
    case = AttentionCase.of(heads, rows, length, source.dtype, source.device, most_copies=1)
    q = case.queries(rows)
    # -1 is a padding row.
    positions = [source.whole(-1, length, rows) for _ in range(2)]
    taken = positions[0].clone()
    attend = source.backend.ops.decode_attention
    shape = f"{rows} rows of {length}, heads {heads.H}/{heads.G} of {heads.D}"

    def run(position: Tensor) -> Tensor:
        return attend(q, case.keys, case.values, case.tables[0], position, heads.D**-0.5).flatten(1)

    truths = [_truth(case, q, range(rows), position.tolist()) for position in positions]
    yield KernelCheck("decode_attention", shape, partial(run, positions[0]), truths[0])
    again = partial(replayed, source.backend, partial(run, taken), partial(taken.copy_, positions[1]))
    yield KernelCheck("decode_attention, replayed", shape, again, truths[1], in_graph=True)


def _prefill(source: CheckSource, heads: Heads) -> Iterator[KernelCheck]:
    sequences, length = source.size(1, 2, 3), source.between(1, 400)
    case = AttentionCase.of(heads, sequences, length, source.dtype, source.device, most_copies=1)
    count = source.between(1, length)
    start = torch.arange(sequences + 1, dtype=torch.int32, device=source.device) * count
    first = torch.full((sequences,), length - count, dtype=torch.int32, device=source.device)
    q = case.queries(sequences * count)
    positions = [length - count + row % count for row in range(len(q))]
    truth = _truth(case, q, (row // count for row in range(len(q))), positions)

    def run() -> Tensor:
        attend = source.backend.ops.prefill_attention
        scale = heads.D**-0.5
        return attend(q, case.keys, case.values, case.tables[0], start, first, scale, 0, count).flatten(1)

    shape = f"{sequences} chunks of {count} behind {length - count}, heads {heads.H}/{heads.G} of {heads.D}"
    yield KernelCheck("prefill_attention", shape, run, truth)


def _truth(case: AttentionCase, q: Tensor, sequences: Iterable[int], positions: list[int]) -> Tensor:
    """[rows, H D]; 0 for padding."""
    rows = [
        case.truth(query, sequence, position) if position >= 0 else torch.zeros_like(query).double()
        for query, sequence, position in zip(q, sequences, positions, strict=True)
    ]
    return torch.stack(rows).flatten(1)


def _rope_store(source: CheckSource, heads: Heads) -> Iterator[KernelCheck]:
    tokens = source.between(1, 70)
    q, k, v = (source.normal(tokens, count, heads.D) for count in (heads.H, heads.G, heads.G))
    angle = source.normal(tokens, heads.D // 2, dtype=torch.float32)
    cos, sin = angle.cos(), angle.sin()
    position = torch.arange(tokens, dtype=torch.int32, device=source.device)
    blocks = -(-tokens // BLOCK_SIZE)
    index = torch.randperm(blocks * BLOCK_SIZE, device=source.device)[:tokens]
    rotated = [_rotated(x, cos, sin) for x in (q, k)]

    def run() -> Tensor:
        caches = [q.new_zeros(blocks, heads.G, BLOCK_SIZE, heads.D) for _ in range(2)]
        queries = q.clone()
        source.backend.ops.rope_store(queries, k, v, cos, sin, position, index, *caches)
        stored = [cache[index // BLOCK_SIZE, :, index % BLOCK_SIZE] for cache in caches]
        return torch.cat([x.flatten(1) for x in (queries, *stored)], 1)

    truth = torch.cat([x.flatten(1) for x in (*rotated, v.double())], 1)
    yield KernelCheck("rope_store", f"{tokens} x {heads.H}/{heads.G} x {heads.D}", run, truth)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.double().chunk(2, -1)
    c, s = cos.double()[:, None], sin.double()[:, None]
    return torch.cat([low * c - high * s, high * c + low * s], -1)
