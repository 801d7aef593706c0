"""Runs chunks of sequences through the model on a CPU: chunks in, sampled tokens and captured states out."""

import warnings
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from zweave.kernels import DecoderMetadata, greedy

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.model_config import ModelConfig
from ..decomposition.decomposition import Decomposition
from ..experts.bank import Bank
from ..kv_cache.block_pool import KVCache
from ..model.batch import Batch
from ..model.layer_schedule import LayerEntry, LayerExit, LayerSchedule, StateCapture
from ..model.merger import MergePolicy, Merger
from ..model.model import Model, ModelOutput
from ..model.weights import Weights
from ..planner.batch_planner import BatchPlanner
from ..planner.cost_model import cost_model
from ..planner.plan import Plan
from ..scheduler.chunk import Chunk
from .config import EngineConfig
from .sampler import sample
from .step import ChunkOutput, LaunchedStep, SampledToken


class ModelRunner:
    """Builds the model and runs batches of chunks through it.

    cache: where keys and values go
    max_length: tokens that a sequence may have
    lookahead: steps that may be in flight when the next one is launched
    """

    lookahead = 0

    def __init__(
        self,
        config: EngineConfig,
        checkpoint: Checkpoint,
        decomposition: Decomposition,
        plan: Plan,
        bank: Bank,
        cache: KVCache,
    ) -> None:
        self._config = config
        self._bank = bank
        self.cache = cache
        self.max_length = min(_max_model_len(config, checkpoint.config), cache.num_blocks * cache.block_size)
        weights = Weights(checkpoint, decomposition, bank, plan, config.torch_dtype, config.torch_device)
        self.model = Model(weights, checkpoint.config, cache, self.max_length)
        self._batch_planner: BatchPlanner | None = None
        self._merger: Merger | None = None
        if not config.batch_invariant:
            self._enable_batch_planning(decomposition, plan)

    def _enable_batch_planning(self, decomposition: Decomposition, plan: Plan) -> None:
        """Lets each batch choose how its tokens go through the linears, and merges hot experts in the background."""
        config = self._config
        costs = cost_model(config.torch_dtype)
        self._batch_planner = BatchPlanner(plan, self._bank.tables.modes, costs)
        if config.merge_memory:
            policy = MergePolicy.of(plan, config.torch_dtype, costs, config.merge_memory)
            self._merger = Merger(decomposition, self._bank, self.model.decoder, policy)

    def launch(self, chunks: Iterable[Chunk]) -> LaunchedStep:
        """Computes chunks as one batch, in an order of its own."""
        ordered = sorted(chunks, key=self._batch_order)
        output = self.model.forward(self._apply_batch_plan(self.prepare(ordered)))
        return LaunchedStep(ordered, _output_of(ordered, output))

    def prepare(self, chunks: Seq[Chunk]) -> Batch:
        """The tensors of chunks in the order given, which must be one that LayerSchedule allows."""
        num_layers, device = self.model.config.num_layers, self._config.torch_device
        return _build_batch(chunks, num_layers, self.cache.block_size, device)

    def _batch_order(self, chunk: Chunk) -> tuple[object, ...]:
        """Late entries first and early exits last, as LayerSchedule wants it; then tokens of one mode together."""
        exit_layer = chunk.sequence.exit_layer
        depth = (0, -chunk.entry_layer) if exit_layer is None else (1, -exit_layer)
        return *depth, self._bank.tables.mode_key(chunk.sequence.slot or 0)

    def _apply_batch_plan(self, batch: Batch) -> Batch:
        """Brings merged experts up to date and, if that is cheaper, computes all tokens in factored mode."""
        slot = batch.meta.slot
        if self._merger is not None:
            self._merger.settle(slot)
        if self._batch_planner is None or not self._batch_planner.all_factored(slot):
            return batch
        return replace(batch, meta=replace(batch.meta, all_factored=True))


def _max_model_len(config: EngineConfig, model: ModelConfig) -> int:
    """Tokens of a sequence that the user asks for, else those that the model is made for."""
    if config.max_model_len is None:
        return model.default_max_model_len
    if config.max_model_len > model.max_position:
        warnings.warn(
            f"max_model_len {config.max_model_len}: the model is made for {model.max_position} tokens; "
            "what it says beyond them may be worthless",
            stacklevel=2,
        )
    return config.max_model_len


def _output_of(chunks: Seq[Chunk], output: ModelOutput) -> Callable[[int], ChunkOutput]:
    """Gives the output of each chunk by its index; a token is sampled when it is asked for."""
    greedy_ids, is_finite = (values.tolist() for values in greedy(output.logits))
    complete = {chunk: row for row, chunk in enumerate(chunk for chunk in chunks if chunk.complete)}
    ranges = row_ranges(chunks)

    def sampled(chunk: Chunk) -> SampledToken | None:
        if chunk not in complete:
            return None
        row, sequence = complete[chunk], chunk.sequence
        logits = output.logits[row]
        return sample(
            logits, greedy_ids[row], is_finite[row], sequence.request, sequence.seed, chunk.num_generated
        )

    def output_of(index: int) -> ChunkOutput:
        chunk, (first, last) = chunks[index], ranges[index]
        states = {layer: output.states[StateCapture(layer, first, last)] for layer in chunk.capture_layers}
        return ChunkOutput(chunk, sampled(chunk), states)

    return output_of


def row_ranges(chunks: Seq[Chunk]) -> list[tuple[int, int]]:
    """The rows [first, last) of each chunk in a batch that holds them one after the other."""
    lasts = accumulate(chunk.count for chunk in chunks)
    return [(last - chunk.count, last) for chunk, last in zip(chunks, lasts, strict=True)]


def _build_batch(chunks: Seq[Chunk], num_layers: int, block_size: int, device: torch.device) -> Batch:
    ranges = row_ranges(chunks)
    sampled = [last - 1 for chunk, (_, last) in zip(chunks, ranges, strict=True) if chunk.complete]
    token_ids = np.concatenate([chunk.sequence.token_ids[chunk.start : chunk.stop] for chunk in chunks])
    return Batch(
        token_ids=_tensor(token_ids, np.int64, device),
        meta=_metadata(chunks, block_size, device),
        sampled=_tensor(np.array(sampled), np.int64, device),
        schedule=_layer_schedule(chunks, ranges, num_layers),
    )


def _metadata(chunks: Seq[Chunk], block_size: int, device: torch.device) -> DecoderMetadata:
    row = np.repeat(np.arange(len(chunks)), [chunk.count for chunk in chunks])
    position = np.concatenate([np.arange(chunk.start, chunk.stop) for chunk in chunks])
    slot = np.array([chunk.sequence.slot for chunk in chunks])[row]
    adapted_from = np.array([chunk.sequence.adapted_from for chunk in chunks])[row]
    table = np.zeros((len(chunks), max(len(c.sequence.kv.block_table) for c in chunks)), dtype=np.int32)
    for blocks, chunk in zip(table, chunks, strict=True):
        blocks[: len(chunk.sequence.kv.block_table)] = chunk.sequence.kv.block_table
    kv_index = table[row, position // block_size].astype(np.int64) * block_size + position % block_size
    return DecoderMetadata(
        slot=_tensor(np.where(position >= adapted_from, slot, 0), np.int32, device),
        seq_index=_tensor(row, np.int32, device),
        position=_tensor(position, np.int32, device),
        kv_index=_tensor(kv_index, np.int64, device),
        block_table=_tensor(table, np.int32, device),
    )


def _layer_schedule(chunks: Seq[Chunk], ranges: Seq[tuple[int, int]], num_layers: int) -> LayerSchedule:
    entries, captures, exits = [], [], []
    for chunk, (first, last) in zip(chunks, ranges, strict=True):
        states, exit_layer = chunk.entry_states, chunk.sequence.exit_layer
        if states is not None:
            entries.append(LayerEntry(chunk.entry_layer, first, states))
        captures += [StateCapture(layer, first, last) for layer in chunk.capture_layers]
        if exit_layer is not None:
            exits.append(LayerExit(exit_layer, first))
    return LayerSchedule.of(num_layers, ranges[-1][1], entries, captures, exits)


def _tensor(values: np.ndarray, dtype: type, device: torch.device) -> Tensor:
    return torch.from_numpy(values.astype(dtype, copy=False)).to(device)
