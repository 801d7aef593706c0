"""The paged key-value cache: storage in blocks of token positions, and the list of free blocks."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from zweave.kernels import empty_kv

from ..checkpoint.model_config import ModelConfig
from ..io.submit import Submit, at_once


@dataclass(frozen=True, slots=True)
class LayerCache:
    """Keys and values of one layer, as `empty_kv` lays them out: k[block] and v[block] are a block."""

    k: Tensor
    v: Tensor


class KVCache:
    """Storage of all layers and the list of free blocks; a block has the same number in every layer.

    packed: whether blocks have the layout of a CPU's kernels; by default where the device is one.
    submit: has a copy made, in its order among steps that are in flight; by default at once.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        packed: bool | None = None,
        submit: Submit = at_once,
    ) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        # One tensor for all layers: a block is copied by one call for its keys and one for its values.
        shape = config.num_layers * num_blocks, config.num_kv_heads, block_size, config.head_dim
        k, v = (
            t.unflatten(0, (config.num_layers, num_blocks)) for t in empty_kv(*shape, dtype, device, packed)
        )
        self.layers = [LayerCache(*of_layer) for of_layer in zip(k, v, strict=True)]
        self._k, self._v = k, v
        self._submit = submit
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def blocks_for(self, tokens: int) -> int:
        """Number of blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Takes `count` free blocks; the caller has made sure that there are as many."""
        if count > len(self._free):
            raise RuntimeError(f"{count} blocks asked for, {len(self._free)} free")
        return [self._free.pop() for _ in range(count)]

    def release(self, blocks: list[int]) -> None:
        """Returns blocks to the free list; their content is void."""
        self._free.extend(reversed(blocks))

    def copy(self, source: int, target: int) -> None:
        """Copies a block's keys and values in all layers."""

        def work() -> None:
            self._k[:, target].copy_(self._k[:, source])
            self._v[:, target].copy_(self._v[:, source])

        self._submit(work)

    def copy_below(self, layer: int, sources: Seq[int], targets: Seq[int]) -> None:
        """Copies blocks' keys and values in the layers below `layer`."""
        pairs = list(zip(sources, targets, strict=True))

        def work() -> None:
            for values in (self._k[:layer], self._v[:layer]):
                for source, target in pairs:
                    values[:, target].copy_(values[:, source])

        self._submit(work)
