"""Cases of attention on a GPU: pages in no order, queries, and the float64 truth of some of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..harness.machine import cache_bytes

BLOCK_SIZE = 32
# Copies of a small case's keys and values; a graph of more launches tells nothing new.
MOST_COPIES = 64


@dataclass(frozen=True, slots=True)
class Heads:
    """H query heads of D numbers over G key-value heads."""

    H: int
    G: int
    D: int

    def moved(self, positions: int, queries: int, itemsize: int) -> float:
        """Bytes of keys and values of `positions`, of queries and of their results."""
        return float(itemsize * self.D * (2 * self.G * positions + 2 * self.H * queries))

    def flops(self, pairs: int) -> float:
        """Operations of two products for each pair of a query and a position that it sees."""
        return 4.0 * self.D * self.H * pairs


@dataclass(frozen=True, slots=True)
class AttentionCase:
    """`sequences` of `length` tokens, with the keys and values of all.

    keys, values: [copies * sequences * length / BLOCK_SIZE, G, BLOCK_SIZE, D]
    tables: [copies, sequences, n] int32; no block is in two of them
    """

    heads: Heads
    sequences: int
    length: int
    keys: Tensor
    values: Tensor
    tables: Tensor

    @classmethod
    def of(
        cls,
        heads: Heads,
        sequences: int,
        length: int,
        dtype: torch.dtype,
        device: torch.device,
        most_copies: int = MOST_COPIES,
    ) -> "AttentionCase":
        """As many copies as keep a copy out of the cache until its turn comes again."""
        blocks = sequences * -(-length // BLOCK_SIZE)
        size = heads.moved(blocks * BLOCK_SIZE, 0, dtype.itemsize)
        copies = int(min(most_copies, max(1, -(-4 * cache_bytes(device.type) // size))))
        shape = (copies * blocks, heads.G, BLOCK_SIZE, heads.D)
        keys, values = (torch.randn(shape, dtype=dtype, device=device) for _ in range(2))
        order = torch.randperm(copies * blocks, device=device).int()
        return cls(heads, sequences, length, keys, values, order.view(copies, sequences, -1))

    def queries(self, tokens: int) -> Tensor:
        """[tokens, H, D], random."""
        like = self.keys
        return torch.randn(tokens, self.heads.H, self.heads.D, dtype=like.dtype, device=like.device)

    def in_one_piece(self, copy: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a copy without pages, [sequences, G, length, D] each."""
        k, v = (
            cache[self.tables[copy].long()].transpose(1, 2).flatten(2, 3)[:, :, : self.length].contiguous()
            for cache in (self.keys, self.values)
        )
        return k, v

    def truth(self, query: Tensor, sequence: int, position: int) -> Tensor:
        """[H, D] float64 for a query [H, D] of the first copy's sequence that sees positions up to `position`."""
        used = self.tables[0, sequence, : position // BLOCK_SIZE + 1].long()
        k, v = (
            cache[used].double().transpose(0, 1).flatten(1, 2)[:, : position + 1]
            for cache in (self.keys, self.values)
        )  # [G, positions, D]
        grouped = query.double().view(self.heads.G, -1, self.heads.D)
        weight = (grouped @ k.transpose(1, 2) * self.heads.D**-0.5).softmax(-1)
        return (weight @ v).reshape(self.heads.H, self.heads.D)
