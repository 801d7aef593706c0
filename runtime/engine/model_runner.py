"""Runs chunks of sequences through the model on a CPU: chunks in, sampled tokens and captured states out."""

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import replace

import torch
from torch import Tensor

from zweave.kernels import DecoderMetadata, greedy

from ..checkpoint.checkpoint import Checkpoint
from ..decomposition.decomposition import Decomposition
from ..experts.bank import Bank
from ..kv_cache.block_pool import KVCache
from ..model.batch import Batch
from ..model.held_weights import HeldWeights
from ..model.layer_schedule import StateCapture
from ..model.merger import MergePolicy, Merger
from ..model.model import Model, ModelOutput
from ..model.weights import Weights
from ..planner.batch_planner import BatchPlanner
from ..planner.cost_model import cost_model
from ..planner.plan import Plan
from ..scheduler.chunk import Chunk
from .config import EngineConfig
from .prompt_logprobs import prompt_logprobs
from .sampler import sample
from .step import ChunkOutput, LaunchedStep, SampledToken
from .step_arrays import StepArrays, capture_schedule, layer_schedule, row_ranges


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
        max_length: int,
        held: HeldWeights,
    ) -> None:
        self._config = config
        self._bank = bank
        self.cache = cache
        self.max_length = max_length
        weights = Weights(
            checkpoint,
            decomposition,
            bank,
            plan,
            config.torch_dtype,
            config.torch_device,
            held,
        )
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
        return LaunchedStep(ordered, _output_of(ordered, output, self.model.logits_of))

    def prepare(self, chunks: Seq[Chunk]) -> Batch:
        """The tensors of chunks in the order given, which must be one that LayerSchedule allows."""
        arrays = StepArrays.of(chunks, self.cache.block_size)
        meta = DecoderMetadata(
            slot=torch.from_numpy(arrays.slot),
            seq_index=torch.from_numpy(arrays.chunk),
            position=torch.from_numpy(arrays.position),
            kv_index=torch.from_numpy(arrays.kv_index),
            block_table=torch.from_numpy(arrays.block_table),
        )
        schedule = layer_schedule(chunks, self.model.config.num_layers)
        return Batch(torch.from_numpy(arrays.token_ids), meta, torch.from_numpy(arrays.sampled), schedule)

    def states(self, chunks: Seq[Chunk], layers: Seq[int]) -> Mapping[StateCapture, Tensor]:
        """See `Runner`."""
        batch = self.prepare(chunks)
        schedule = capture_schedule(chunks, layers, self.model.config.num_layers)
        return self.model.forward(replace(batch, schedule=schedule, sampled=batch.sampled[:0])).states

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


def _output_of(
    chunks: Seq[Chunk], output: ModelOutput, logits_of: Callable[[Tensor], Tensor]
) -> Callable[[int], ChunkOutput]:
    """Gives the output of each chunk by its index; a token is sampled when it is asked for."""
    greedy_ids, is_finite = (values.tolist() for values in greedy(output.logits))
    complete = {chunk: row for row, chunk in enumerate(chunk for chunk in chunks if chunk.complete)}
    ranges = row_ranges(chunks)

    def sampled(chunk: Chunk) -> SampledToken | None:
        if chunk not in complete:
            return None
        row = complete[chunk]
        return sample(output.logits[row], greedy_ids[row], is_finite[row], chunk)

    def output_of(index: int) -> ChunkOutput:
        chunk, (first, last) = chunks[index], ranges[index]
        states = {layer: output.states[StateCapture(layer, first, last)] for layer in chunk.capture_layers}
        of_prompt = (
            [] if chunk.top_layer is None else prompt_logprobs(chunk, states[chunk.top_layer], logits_of)
        )
        return ChunkOutput(chunk, sampled(chunk), states, prompt_logprobs=of_prompt)

    return output_of
