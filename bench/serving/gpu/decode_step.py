"""A decode step of a model on a GPU, apart from an engine: its tensors, and other kernels for the same weights."""

import copy
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from zweave.checkpoint import ModelConfig
from zweave.kernels import DeviceOps, LinearMode
from zweave.kv_cache.block_pool import KVCache
from zweave.model.gpu_batch import GpuBatch
from zweave.model.gpu_model import GpuModel
from zweave.model.layer_schedule import LayerSchedule
from zweave.planner.gpu_cost import StepShape

# The engine's graphs have block tables of at least so many tokens.
LEAST_TABLE = 2048


def filled_cache(
    config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> KVCache:
    """A cache full of random keys and values."""
    cache = KVCache(config, num_blocks, block_size, dtype, device, packed=False)
    for layer in cache.layers:
        layer.k.normal_()
        layer.v.normal_()
    return cache


def with_kernels(model: GpuModel, ops: DeviceOps, library_from: int | None) -> GpuModel:
    """The model's weights and cache under other kernels; `library_from` as `StackedLinear` has it."""
    other = copy.copy(model)
    other.ops = ops
    other.layers = [
        replace(
            layer,
            **{
                name: replace(getattr(layer, name), ops=ops, library_from=library_from)
                for name in ("qkv", "o", "gate_up", "down")
            },
        )
        for layer in model.layers
    ]
    return other


def library_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out_dtype: torch.dtype | None = None
) -> Tensor:
    """PyTorch's linear, called as ours is."""
    return F.linear(x, weight, bias).to(out_dtype or x.dtype)


class DecodeStep:
    """One step, which leaves the same in the cache however often it runs.

    tokens: [rows] int64, those of the last run
    """

    tokens: Tensor

    def __init__(self, model: GpuModel, mode: LinearMode, shape: StepShape) -> None:
        device = model.norm.device
        self._model = model
        self._mode = mode
        self._batch = _batch(model, shape, device)
        self._previous = torch.zeros(1, dtype=torch.int64, device=device)
        self._slot_of = torch.arange(1 + shape.experts, dtype=torch.int32, device=device)
        self._sampling = _greedy(shape.rows, device)

    def __call__(self) -> None:
        """Samples the tokens."""
        self.tokens, _ = self._model.ops.sample(self.logits(), *self._sampling)

    def logits(self) -> Tensor:
        """[rows, vocabulary] float32."""
        logits, _ = self._model.forward(self._batch, self._mode, self._previous, self._slot_of)
        return logits


def _batch(model: GpuModel, shape: StepShape, device: torch.device) -> GpuBatch:
    generator = torch.Generator().manual_seed(0)
    cache, rows, position = model.cache, shape.rows, shape.context - 1
    used = cache.blocks_for(shape.context)
    table = torch.zeros(rows, max(used, cache.blocks_for(LEAST_TABLE)), dtype=torch.int32)
    # A cache that was used for a while has its blocks in no order.
    blocks = torch.randperm(cache.num_blocks, generator=generator)[: rows * used]
    table[:, :used] = blocks.view(rows, used)
    block = table[:, position // cache.block_size].long()
    indices = torch.arange(rows)
    tensors = {
        "token_ids": torch.randint(model.config.vocab_size, (rows,), generator=generator),
        "slot": (1 + indices % shape.experts).int()
        if shape.experts
        else torch.zeros(rows, dtype=torch.int32),
        "position": torch.full((rows,), position, dtype=torch.int32),
        "kv_index": block * cache.block_size + position % cache.block_size,
        "block_table": table,
        "query_start": torch.zeros(1, dtype=torch.int32),
        "first_position": torch.zeros(0, dtype=torch.int32),
        "sampled": indices,
    }
    return GpuBatch(
        **{name: tensor.to(device) for name, tensor in tensors.items()},
        num_decode=rows,
        max_query_len=0,
        schedule=LayerSchedule.of(model.config.num_layers, rows),
        chunk_starts=(),
    )


def _greedy(rows: int, device: torch.device) -> list[Tensor]:
    """The arguments of `sample` behind the logits."""
    zeros = {dtype: torch.zeros(rows, dtype=dtype, device=device) for dtype in (torch.float32, torch.int32)}
    ones = torch.ones(rows, device=device)
    seed = torch.zeros(rows, dtype=torch.int64, device=device)
    return [zeros[torch.float32], zeros[torch.int32], ones, zeros[torch.float32], seed, seed]
