"""The tensors of one step on a GPU."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from .layer_schedule import LayerSchedule


@dataclass(frozen=True, slots=True)
class GpuBatch:
    """What a GPU computes in one step: the tokens of its chunks, one row each, those of a chunk in a row.

    The first `num_decode` chunks are of one token. Rows whose position is -1 fill up a bucket: they write nothing that
    anybody reads.

    token_ids: [T] int64; -1 - i stands for the token that the step before sampled as its i-th
    slot: [T] int32, row of the expert tables, 0 for the base model; or the place of one that the device chooses, above
        all rows
    position: [T] int32, position in the sequence
    kv_index: [T] int64, cache position where the token's key and value go
    block_table: [chunks, n] int32, cache blocks of each chunk's sequence
    num_decode: chunks of one token that come first
    query_start: [prefilling chunks + 1] int32, the first row of each chunk after those, from 0 on
    first_position: [prefilling chunks] int32, the position of that row's token
    max_query_len: at least the tokens of the longest of these chunks
    sampled: [n] int64, the rows whose next token is sampled
    schedule: which rows go through which layers
    chunk_starts: the first row of every chunk, and the number of rows
    pages: [1 + n] int32, as `add_components` takes them: of the LoRAs of the slots; None if no slot has one
    """

    token_ids: Tensor
    slot: Tensor
    position: Tensor
    kv_index: Tensor
    block_table: Tensor
    num_decode: int
    query_start: Tensor
    first_position: Tensor
    max_query_len: int
    sampled: Tensor
    schedule: LayerSchedule
    chunk_starts: Sequence[int]
    pages: Tensor | None = None

    def with_slots(self, slot_of: Tensor) -> "GpuBatch":
        """The batch with the rows of the tables in the stead of places. slot_of: see `GpuModel.forward`."""
        return replace(self, slot=slot_of.index_select(0, self.slot))

    def rows(self, first: int, stop: int) -> "GpuBatch":
        """The rows [first, stop) alone, which must be whole chunks. Only for a batch without decoding chunks."""
        if (first, stop) == (0, len(self.position)):
            return self
        assert self.num_decode == 0
        a, b = self.chunk_starts.index(first), self.chunk_starts.index(stop)
        return replace(
            self,
            token_ids=self.token_ids[first:stop],
            slot=self.slot[first:stop],
            position=self.position[first:stop],
            kv_index=self.kv_index[first:stop],
            block_table=self.block_table[a:b],
            query_start=self.query_start[a : b + 1] - first,
            first_position=self.first_position[a:b],
            chunk_starts=[start - first for start in self.chunk_starts[a : b + 1]],
        )
