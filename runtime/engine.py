"""The engine: one resident model that answers a mixed batch of requests, each under its own expert."""

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import replace
from itertools import count
from os import PathLike

from torch import Tensor

from zweave.bank import Bank
from zweave.batch import Batch
from zweave.batch_planner import BatchPlanner
from zweave.block_manager import BlockManager
from zweave.checkpoint import resolve_model
from zweave.cost_model import cost_model
from zweave.decompose import Decomposition, decompose
from zweave.engine_config import EngineConfig
from zweave.engine_stats import EngineStats
from zweave.errors import ZweaveError
from zweave.expert import Expert
from zweave.kernels import greedy
from zweave.kv_cache import KVCache
from zweave.merger import Merger
from zweave.mixture import Mixture
from zweave.model import Model, Weights
from zweave.plan import Plan
from zweave.planner import plan_for
from zweave.pooled_state import check_layers, pooled_states
from zweave.request import Delta, ExpertChoice, FinishReason, Request, Result
from zweave.sampling import draw, logprobs, scores
from zweave.scheduler import Scheduler
from zweave.sequence import Chunk, Sequence
from zweave.stop import StopText
from zweave.tokenizer import TextStream, Tokenizer


class Engine:
    """Serves one model. Use it from one thread; experts may be loaded and unloaded from others.

    model: a name that `zweave pull` knows, a Hugging Face directory, or a GGUF file. A model that was never
    decomposed is decomposed first, with progress on standard error.
    options: the fields of EngineConfig.
    """

    def __init__(
        self,
        model: str | PathLike[str],
        **options: object,
    ) -> None:
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
        plan = plan_for(self.config, {name: shapes[name] for name in sigmas})
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
        self._sequences: dict[int, Sequence] = {}
        self._undelivered: list[Delta] = []
        self._ids = count()

    def _look_at_batches(self, decomposition: Decomposition, plan: Plan) -> None:
        """Has steps choose the ways of their tokens, and hot experts merged."""
        costs = cost_model(self.config.torch_dtype)
        self._batch_planner = BatchPlanner(plan, self.bank.tables.ways, costs)
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

    def load_expert(self, name: str, expert: str | PathLike[str] | Expert) -> None:
        """Makes an expert known under a name; an expert of that name is replaced for new requests."""
        self.bank.load(name, expert)

    def unload_expert(self, name: str) -> None:
        """Forgets an expert; requests that run under it end undisturbed."""
        self.bank.unload(name)

    def experts(self) -> list[str]:
        """Names of the loaded experts."""
        return self.bank.experts()

    def check_expert(self, expert: ExpertChoice) -> None:
        """Raises ZweaveError unless a request could name this expert or mixture now."""
        self.bank.bind(Mixture.parse(expert))

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
            self._undelivered.append(self._finish(sequence, sequence.text.finish(), [], "cancelled"))

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
        chunks, failed = self._scheduler.schedule()
        for sequence, reason in failed:
            self._undelivered.append(self._finish(sequence, "", [], "error", reason))
        if chunks:
            chunks.sort(key=lambda chunk: self.bank.tables.way_key(chunk.sequence.slot or 0))
            batch = Batch.of(chunks, self._cache.block_size, self.config.torch_device)
            self._advance(chunks, self.model(self._planned(batch)))
        deltas, self._undelivered = self._undelivered, []
        return deltas

    def _planned(self, batch: Batch) -> Batch:
        """The batch with its tokens' ways chosen, where they may depend on the batch."""
        slot = batch.places.slot
        if self._merger is not None:
            self._merger.settle(slot)
        if self._batch_planner is None or not self._batch_planner.all_factored(slot):
            return batch
        return replace(batch, places=replace(batch.places, all_factored=True))

    def _advance(self, chunks: list[Chunk], logits: Tensor) -> None:
        """Marks the chunks as computed and samples where they reach the end. logits: a row for each of those."""
        ids, finite = greedy(logits)
        rows = iter(zip(logits, ids.tolist(), finite.tolist(), strict=True))
        for chunk in chunks:
            sequence = chunk.sequence
            if not chunk.complete:
                sequence.computed += chunk.count
                continue
            row, token_id, finite = next(rows)
            if not finite:
                reason = "the model's logits are not finite: its weights or the expert's scales are too large"
                self._undelivered.append(self._finish(sequence, sequence.text.finish(), [], "error", reason))
                continue
            self._sample(chunk, row, token_id)

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
        sequence.computed += chunk.count
        if reason is None:
            self._undelivered.append(Delta(sequence.request_id, text, [token_id]))
        else:
            self._undelivered.append(self._finish(sequence, text, [token_id], reason))

    def _finish(
        self,
        sequence: Sequence,
        text: str,
        token_ids: list[int],
        reason: FinishReason,
        error: str | None = None,
    ) -> Delta:
        self._sequences.pop(sequence.request_id, None)
        self._scheduler.remove(sequence)
        return Delta(sequence.request_id, text, token_ids, sequence.result(reason, error))

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
        """Checks a request against this model and the loaded experts."""
        if not isinstance(request, Request):
            raise ZweaveError(f"the engine takes zweave.Request, not {type(request).__name__}")
        if request.messages is not None:
            tokens = self.tokenizer.chat(request.messages)
        elif isinstance(request.prompt, str):
            tokens = self.tokenizer.encode(request.prompt)
        else:
            tokens = list(request.prompt or ())
        self._check_ids(tokens)
        self._check_ids(request.score)
        if not tokens:
            raise ZweaveError("the prompt gives no token: give at least one")
        if len(tokens) >= self.max_length:
            raise ZweaveError(
                f"the prompt has {len(tokens)} tokens, this engine takes at most {self.max_length - 1}: shorten it"
            )
        mixture = self.bank.bind(Mixture.parse(request.expert))
        after_prompt = mixture.scope == "after_prompt"
        return Sequence(
            request_id=next(self._ids),
            request=request,
            mixture=mixture,
            tokens=tokens,
            adapted_from=self.tokenizer.after_prompt_start(tokens) if after_prompt else 0,
            max_length=min(self.max_length, len(tokens) + request.max_tokens),
            text=StopText(TextStream(self.tokenizer, tokens), request.stop_strings),
        )

    def _check_ids(self, tokens: Seq[int]) -> None:
        vocabulary = self.model.config.vocab_size
        for token in tokens:
            if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < vocabulary:
                raise ZweaveError(f"token ids must be integers from 0 to {vocabulary - 1}, not {token!r}")

    def _queue(self, sequence: Sequence) -> int:
        self._sequences[sequence.request_id] = sequence
        self._scheduler.add(sequence)
        return sequence.request_id
