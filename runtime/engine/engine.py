"""The engine: one resident model that answers a mixed batch of requests, each under its own expert."""

import time
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import replace
from os import PathLike

from torch import Tensor

from zweave.kernels import greedy

from ..checkpoint.checkpoint import resolve_model
from ..decomposition.decomposition import Decomposition, decompose
from ..dispatcher import Dispatcher
from ..errors import ZweaveError
from ..experts.bank import Bank
from ..experts.bundled import bundled_expert
from ..experts.expert import Expert
from ..experts.mixture import ExpertChoice, Mixture
from ..kv_cache.block_pool import KVCache
from ..model.batch import Batch
from ..model.layer_schedule import StateCapture
from ..model.merger import Merger
from ..model.model import Model, ModelOutput
from ..model.weights import Weights
from ..planner.batch_planner import BatchPlanner
from ..planner.cost_model import cost_model
from ..planner.plan import Plan
from ..planner.planner import plan_for
from ..request import Delta, FinishReason, Request, Result
from ..scheduler.block_manager import BlockManager
from ..scheduler.chunk import Chunk
from ..scheduler.pooling import Pooling
from ..scheduler.scheduler import Scheduler
from ..scheduler.sequence import Sequence
from ..scheduler.stats import EngineStats
from ..text.tokenizer import Tokenizer
from ..trace.step import Observer, Span, StepTrace
from .config import EngineConfig
from .first_pass import FirstPassManager
from .input_processor import RequestReader
from .model_runner import build_batch, row_ranges
from .pooled_states import check_layers, pooled_states
from .sampler import draw, logprobs, scores

# Seconds that a step waits for dispatchers when there is nothing else to do.
_PATIENCE = 0.05


class Engine:
    """Serves one model. Use it from one thread; experts may be loaded and unloaded from others.

    model: a name that `zweave pull` knows, a Hugging Face directory, or a GGUF file. A model that was never
    decomposed is decomposed first, with progress on standard error.
    dispatcher: finds the expert of requests with expert="auto" that bring no dispatcher; it may be set later.
    observer: an attribute; is told what each step has computed, if it is set.
    options: the fields of EngineConfig.
    """

    def __init__(
        self,
        model: str | PathLike[str],
        dispatcher: Dispatcher | None = None,
        **options: object,
    ) -> None:
        self.dispatcher = dispatcher
        try:
            self.config = EngineConfig(**options)  # type: ignore[arg-type]  # checked by EngineConfig
        except TypeError as error:
            raise ZweaveError(f"unknown engine option: {error}") from None
        checkpoint = resolve_model(model)
        decomposition = decompose(checkpoint)
        device = self.config.torch_device
        self.tokenizer = Tokenizer(checkpoint.directory)
        num_blocks = self.config.kv_tokens // self.config.block_size
        self.max_length = min(checkpoint.config.max_position, num_blocks * self.config.block_size)
        sigmas = {name: decomposition.sigma(name) for name in decomposition.names}
        shapes = checkpoint.config.adapted_shapes()
        plan = plan_for(
            {name: shapes[name] for name in sigmas},
            device.type,
            self.config.torch_dtype,
            self.config.max_memory,
            self.config.max_error,
        )
        try:
            self.bank = Bank(
                sigmas,
                slots=self.config.slots + 1,
                device=device,
                base_digest=decomposition.digest,
                plan=plan,
                max_error=self.config.max_error,
            )
            self._cache = KVCache(
                checkpoint.config, num_blocks, self.config.block_size, self.config.torch_dtype, device
            )
        except RuntimeError as error:
            raise ZweaveError(
                f"no memory for {self.config.slots} slots and {self.config.kv_tokens} kv_tokens: lower them "
                f"({str(error).splitlines()[0][:80]})"
            ) from None
        weights = Weights(checkpoint, decomposition, self.bank, plan, self.config.torch_dtype, device)
        self.model = Model(weights, checkpoint.config, self._cache, self.max_length)
        self._batch_planner: BatchPlanner | None = None
        self._merger: Merger | None = None
        if not self.config.batch_invariant:
            self._look_at_batches(decomposition, plan)
        self._eos_ids = self.tokenizer.eos_ids
        self._blocks = BlockManager(self._cache, self.config.prefix_cache)
        self._scheduler = Scheduler(
            self._blocks, self.bank, self.config.max_sequences, self.config.max_batch_tokens
        )
        config = checkpoint.config
        self._reader = RequestReader(self.tokenizer, self.bank, config.vocab_size, self.max_length)
        self._first_passes = FirstPassManager(
            self.config, self._reader, self._scheduler, self.bank, config.num_layers
        )
        self._sequences: dict[int, Sequence] = {}
        self._undelivered: list[Delta] = []
        self.observer: Observer | None = None

    def _look_at_batches(self, decomposition: Decomposition, plan: Plan) -> None:
        """Enables mode planning by batch and background merging of hot experts."""
        costs = cost_model(self.config.torch_dtype)
        self._batch_planner = BatchPlanner(plan, self.bank.tables.modes, costs)
        if self.config.merge_memory:
            self._merger = Merger(
                decomposition,
                plan,
                self.bank,
                self.model.decoder,
                self.config.torch_dtype,
                costs,
                self.config.merge_memory,
            )

    def load_expert(self, name: str, expert: str | PathLike[str] | Expert | None = None) -> None:
        """Makes an expert known under a name; an expert of that name is replaced for new requests.

        expert: a file or an Expert, by default the one of that name that comes with zweave (docs/experts.md).
        Raises ZweaveError if there is none, or it is not for this model.
        """
        self.bank.load(name, bundled_expert(name) if expert is None else expert)

    def unload_expert(self, name: str) -> None:
        """Forgets an expert; requests that run under it end undisturbed."""
        self.bank.unload(name)

    def experts(self) -> list[str]:
        """Names of the loaded experts."""
        return self.bank.experts()

    def check_expert(self, expert: ExpertChoice) -> None:
        """Raises ZweaveError unless a request could name this expert or mixture now."""
        if expert != "auto" or self.dispatcher is None:
            self.bank.resolve(Mixture.parse(expert))

    def check(self, request: Request) -> None:
        """Raises ZweaveError unless this engine could serve the request now."""
        self._prepare(request)

    def generate(self, requests: Request | Iterable[Request]) -> list[Result]:
        """Answers all requests as one continuous batch, in the order given."""
        listed = [requests] if isinstance(requests, Request) else list(requests)
        results = dict(self.run(listed))
        return [results[index] for index in range(len(listed))]

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[int, Result]]:
        """Yields (index, result) of each request as it finishes; requests are all checked before any starts."""
        for index, delta in self._serve(list(requests)):
            if delta.result is not None:
                yield index, delta.result

    def stream(self, request: Request) -> Iterator[Delta]:
        """Yields what each step adds to the answer; leaving the loop early cancels the request."""
        for _, delta in self._serve([request]):
            yield delta

    def pooled_states(self, prompts: Seq[Seq[int]], layers: Seq[int]) -> Tensor:
        """Mean over each prompt's tokens of the base model's state that enters each layer.

        prompts: token ids. layers: from 1 to the model's number of layers. Nothing above them is computed.
        Returns [layers, prompts, hidden] float32. Raises ZweaveError for what cannot be a prompt or a layer,
        and when other requests have taken the cache.
        """
        check_layers(layers, self.model.config.num_layers)
        sequences = [self._prepare(Request(prompt)) for prompt in prompts]
        return pooled_states(self.model, self._blocks, sequences, layers, self.config.max_batch_tokens)

    def add(self, request: Request) -> int:
        """Queues a request and returns its id; the deltas come from `step`."""
        return self._queue(self._prepare(request))

    def cancel(self, request_id: int) -> None:
        """Ends a request where it stands; its last delta comes with the next step. Unknown ids are ignored."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self._finish(sequence, sequence.text.finish(), [], "cancelled")

    @property
    def has_work(self) -> bool:
        return bool(self._sequences or self._undelivered)

    def stats(self) -> EngineStats:
        """What was computed and reused so far, and where the cache stands."""
        return self._scheduler.stats()

    def step(self) -> list[Delta]:
        """Computes one batch and returns what it added to each request that it touched.

        If it raises (or Ctrl-C does), nothing is lost: the next step goes on where this one stopped.
        """
        chunks = self._schedule()
        early = [chunk for chunk in chunks if self._first_passes.exits_early(chunk.sequence)]
        if early:
            # A few layers of these, and their second passes are in this step.
            self._compute(early)
            chunks = self._schedule()
        if chunks:
            self._compute(chunks)
        elif not self._undelivered:
            self._first_passes.wait(_PATIENCE)
        deltas, self._undelivered = self._undelivered, []
        return deltas

    def _schedule(self) -> list[Chunk]:
        """What is to be computed next, after what became known since the last call."""
        for sequence, reason in self._first_passes.advance():
            self._finish(sequence, "", [], "error", reason)
        chunks, failed = self._scheduler.schedule()
        for sequence, reason in failed:
            self._finish(sequence, "", [], "error", reason)
        return chunks

    def _compute(self, chunks: list[Chunk]) -> None:
        start = time.perf_counter()
        chunks.sort(key=lambda c: (c.depth_order, self.bank.tables.mode_key(c.sequence.slot or 0)))
        batch = build_batch(
            chunks, self.model.config.num_layers, self._cache.block_size, self.config.torch_device
        )
        spans = self._spans(chunks) if self.observer is not None else []
        self._advance(chunks, self.model.forward(self._planned(batch)))
        if self.observer is not None:
            self.observer(StepTrace(start, time.perf_counter(), spans, self.stats()))

    def _spans(self, chunks: list[Chunk]) -> list[Span]:
        return [Span.of(chunk, self._first_passes.reads_scores(chunk.sequence)) for chunk in chunks]

    def _planned(self, batch: Batch) -> Batch:
        """The batch with its tokens' modes chosen, where they may depend on the batch."""
        slot = batch.meta.slot
        if self._merger is not None:
            self._merger.settle(slot)
        if self._batch_planner is None or not self._batch_planner.all_factored(slot):
            return batch
        return replace(batch, meta=replace(batch.meta, all_factored=True))

    def _advance(self, chunks: list[Chunk], output: ModelOutput) -> None:
        """Marks the chunks as computed and samples where they reach the end of their sequences."""
        ids, finite = greedy(output.logits)
        rows = iter(zip(output.logits, ids.tolist(), finite.tolist(), strict=True))
        for chunk, (first, last) in zip(chunks, row_ranges(chunks), strict=True):
            sequence = chunk.sequence
            read = {layer: output.states[StateCapture(layer, first, last)] for layer in chunk.capture_layers}
            for layer in chunk.cache_layers:
                sequence.cache_states(layer, chunk.start, read[layer])
            if sequence.pooling is not None:
                self._read_on(chunk, sequence.pooling, read)
                continue
            if not chunk.complete:
                sequence.advance(chunk.count)
                continue
            row, token_id, finite = next(rows)
            if not finite:
                reason = "the model's logits are not finite: its weights or the expert's scales are too large"
                self._finish(sequence, sequence.text.finish(), [], "error", reason)
                continue
            self._sample(chunk, row, token_id)

    def _read_on(self, chunk: Chunk, pooling: Pooling, read: dict[int, Tensor]) -> None:
        """Takes the states of a first pass's tokens."""
        sequence = chunk.sequence
        pooling.add(chunk.start, read[pooling.layer])
        if pooling.exit_layer is None:
            sequence.advance(chunk.count)
        else:
            sequence.advance_below(read[pooling.exit_layer])
        if pooling.done:
            self._first_passes.on_pooled(sequence)

    def _sample(self, chunk: Chunk, row: Tensor, token_id: int) -> None:
        """Adds the next token: the greedy one, or one drawn from the logits `row`."""
        sequence, request = chunk.sequence, chunk.sequence.request
        if request.score and sequence.num_generated == 0:
            sequence.scores = scores(row, request.score)
        if request.sampling.temperature > 0:
            token_id = draw(row, request.sampling, sequence.seed, sequence.num_generated)
        entry = None if request.logprobs is None else logprobs(row, token_id, request.logprobs)
        text, reason = sequence.append(token_id, entry, self._eos_ids)
        # Last, so that an interrupt before it leaves a sequence that can be computed again.
        sequence.advance(chunk.count)
        if reason is None:
            self._undelivered.append(Delta(sequence.request_id, text, [token_id]))
        else:
            self._finish(sequence, text, [token_id], reason)

    def _finish(
        self,
        sequence: Sequence,
        text: str,
        token_ids: list[int],
        reason: FinishReason,
        error: str | None = None,
    ) -> None:
        self._scheduler.remove(sequence)
        if self._first_passes.on_scored(sequence, error):
            return
        self._first_passes.remove(sequence)
        self._sequences.pop(sequence.request_id, None)
        result = sequence.result(reason, error)
        self._undelivered.append(Delta(sequence.request_id, text, token_ids, result))

    def _serve(self, requests: list[Request]) -> Iterator[tuple[int, Delta]]:
        """Runs requests to their end; deltas of other requests are kept for the next `step`."""
        prepared = [self._prepare(request) for request in requests]
        ids = {sequence.request_id: index for index, sequence in enumerate(prepared)}
        unfinished = set(ids)
        others: list[Delta] = []
        try:
            for sequence in prepared:
                self._queue(sequence)
            while unfinished:
                for delta in self.step():
                    if delta.request_id not in ids:
                        others.append(delta)
                        continue
                    if delta.result is not None:
                        unfinished.discard(delta.request_id)
                    yield ids[delta.request_id], delta
        finally:
            for request_id in unfinished:
                self.cancel(request_id)
            rest = [delta for delta in self._undelivered if delta.request_id not in ids]
            self._undelivered = others + rest

    def _prepare(self, request: Request) -> Sequence:
        """Checks a request against this model, the loaded experts and the dispatcher."""
        sequence = self._reader.sequence(request)
        if request.is_auto and self._dispatcher_of(request) is None:
            Mixture.parse(request.expert)  # says that a dispatcher is needed
        return sequence

    def _dispatcher_of(self, request: Request) -> Dispatcher | None:
        return self.dispatcher if request.dispatcher is None else request.dispatcher

    def _queue(self, sequence: Sequence) -> int:
        request = sequence.request
        dispatcher = self._dispatcher_of(request) if request.is_auto else None
        self._sequences[sequence.request_id] = sequence
        if dispatcher is None:
            self._scheduler.add(sequence)
        else:
            self._first_passes.add(sequence, dispatcher)
        return sequence.request_id
