"""The engine: one resident model that answers a mixed batch of requests, each under its own expert."""

import time
from collections import deque
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import fields, replace
from os import PathLike
from typing import Literal, TypeAlias

from torch import Tensor

from ..adapters.lora import Lora
from ..decomposition.refit.quantized_model import BASE
from ..describe.description import Description
from ..dispatcher import Dispatcher
from ..errors import ZweaveError
from ..experts.expert import Expert
from ..experts.mixture import ExpertChoice, Mixture, check_new_name
from ..names import DEFAULT_MODEL
from ..request import Delta, Request, Result
from ..scheduler.chunk import Chunk
from ..scheduler.sequence import Sequence
from ..scheduler.stats import EngineStats
from ..text.prompt_template import PromptTemplate
from ..trace.step import Observer, Span, StepTrace
from .config import EngineConfig
from .described import DescribedExperts
from .engine_parts import load_parts
from .guard import Guard
from .pooled_states import check_layers, pooled_states
from .prompt_logits import prompt_logits
from .rescales import Rescales
from .step import LaunchedStep

# Seconds that a step waits for dispatchers if it has nothing else to do.
_MAX_WAIT = 0.05

OnError: TypeAlias = Literal["raise", "result"]


class Engine:
    """Serves one model, from one thread at a time.

    While a call runs in one thread, `generate`, `run`, `stream`, `add`, `step`, `pooled_states` and `prompt_logits`
    raise ZweaveError in any other, and always in a forked child. Other methods may be called from any thread.

    model: a name that `zweave pull` knows, a Hugging Face directory, or a GGUF file. A model that was never
        decomposed is decomposed first, with progress on standard error.
    dispatcher: chooses the expert of requests with expert="auto" that bring no dispatcher; it may be set later.
    guard: an attribute; keeps threads and processes apart.
    observer: an attribute; if set, it is called with what each step has computed.
    options: the fields of EngineConfig.
    """

    def __init__(
        self,
        model: str | PathLike[str],
        dispatcher: Dispatcher | None = None,
        **options: object,
    ) -> None:
        self.guard = Guard()
        self.dispatcher = dispatcher
        self.observer: Observer | None = None
        known = [field.name for field in fields(EngineConfig)]
        if unknown := sorted(options.keys() - known):
            raise ZweaveError(f"unknown engine option {unknown[0]!r}: use {', '.join(known)}")
        self.config = EngineConfig(**options)  # type: ignore[arg-type]  # checked by EngineConfig
        parts = load_parts(model, self.config)
        self.tokenizer = parts.tokenizer
        self.bank = parts.bank
        self.model = parts.runner.model
        self.max_length = parts.runner.max_length
        self._input_processor = parts.input_processor
        self._first_passes = parts.first_passes
        self._scheduler = parts.scheduler
        self._blocks = parts.blocks
        self._runner = parts.runner
        self._output_processor = parts.output_processor
        self._refit = parts.refit
        self._described = DescribedExperts(parts.bank, model)
        self._is_launching = False
        self._launched: deque[tuple[LaunchedStep, list[Span], float]] = deque()
        self._num_steps = 0
        self._num_decode_steps = 0
        self._wait_seconds = 0.0
        self._rescales = Rescales(
            parts.input_processor, parts.first_passes, parts.scheduler, parts.output_processor
        )

    def load_expert(
        self, name: str, expert: str | PathLike[str] | Expert | Lora | Mapping[str, Tensor] | None = None
    ) -> None:
        """Makes an expert known under a name; an expert of that name is replaced for new requests.

        expert: an Expert, its z by module (each [rank], any dtype of floats), its file, or the name of one that comes
            with zweave (docs/experts.md), by default what the name itself stands for; a LoRA, or the directory that
            PEFT has saved one to (docs/lora.md).
        Raises ZweaveError if there is none, or it is not for this model.
        """
        check_new_name(name)
        if isinstance(expert, Mapping):
            expert = Expert({module: z.detach().float() for module, z in expert.items()})
        self.bank.load(name, name if expert is None else expert)

    def load_adapters(self, file: str | PathLike[str]) -> list[str]:
        """Makes all adapters of a file of compressed LoRAs (docs/lora-compression.md) known; returns their names.

        They share what is resident of their basis, so that more of them take hardly more room. Raises ZweaveError,
        and none is loaded, if the file is not one, or not for this model.
        """
        return [entry.name for entry in self.bank.load_adapters(file)]

    def load_generator(self, file: str | PathLike[str] = DEFAULT_MODEL) -> None:
        """Has descriptions made into experts by a generator (docs/describe.md), in place of any before.

        file: by default the one that comes with zweave, which is for the default model.
        Raises ZweaveError if there is none, or it is not for this model.
        """
        self._described.load(file)

    def describe(self, text: str) -> Expert:
        """The expert that the generator makes of a description; one of the latest is not made again.

        Raises ZweaveError without a generator, for a text that can be no description, and for one that is far from all
        that the generator was trained on.
        """
        return self._described.describe(Description(text)).expert

    @property
    def has_generator(self) -> bool:
        return self._described.has_generator

    def load_description(self, text: str) -> str:
        """Loads the expert of a description, and returns its name; the latest 256 stay loaded.

        Raises ZweaveError as `describe` does.
        """
        return self._described.name_of(Description(text))

    def named(self, request: Request) -> Request:
        """The request with the names of its descriptions' experts in their place, which are loaded.

        Raises ZweaveError as `describe` does.
        """
        return self._described.named(request)

    def unload_expert(self, name: str) -> None:
        """Forgets an expert; requests that run under it are not disturbed."""
        self.bank.unload(name)

    def experts(self) -> list[str]:
        """Names of the loaded experts."""
        return self.bank.experts()

    def divergence(self, expert: str | None = None) -> float | None:
        """The mean KL a token, in nats, that `weights="refit"` costs the base, or a loaded expert.

        As `zweave quantize` measured it; None if it did not, and with other weights.
        Raises ZweaveError for an expert that is not loaded.
        """
        digest = BASE if expert is None else self.bank.registered(expert).digest
        return None if self._refit is None else self._refit.divergence(digest)

    def check_expert(self, expert: ExpertChoice) -> None:
        """Raises ZweaveError unless a request could name this expert or mixture now."""
        if expert != "auto" or self.dispatcher is None:
            self.bank.resolve(Mixture.parse(expert))

    def prompt_template(self, expert: ExpertChoice) -> PromptTemplate | None:
        """The words that a bare text is put into under an expert or mixture, if it has such."""
        return None if expert == "auto" else self.bank.resolve(Mixture.parse(expert)).prompt_template

    def check(self, request: Request) -> None:
        """Raises ZweaveError unless this engine could serve the request now."""
        self._prepare(request)

    def generate(self, requests: Request | Iterable[Request], on_error: OnError = "raise") -> list[Result]:
        """Answers all requests as one continuous batch, in the order given.

        on_error: as for `run`.
        """
        listed = [requests] if isinstance(requests, Request) else list(requests)
        with self.guard.exclusive():
            results = dict(self.run(listed, on_error))
        return [results[index] for index in range(len(listed))]

    def run(self, requests: Iterable[Request], on_error: OnError = "raise") -> Iterator[tuple[int, Result]]:
        """Yields (index, result) of each request as it finishes; all requests are checked before any starts.

        on_error: what happens to a request that this engine cannot serve: "raise" raises ZweaveError with its index
            before any starts, "result" gives it a result with `finish_reason` "error" and serves the others.
        """
        if on_error not in ("raise", "result"):
            raise ZweaveError(f"on_error must be 'raise' or 'result', not {on_error!r}")
        prepared: dict[int, Sequence] = {}
        listed = list(requests)
        for index, request in enumerate(listed):
            try:
                prepared[index] = self._prepare(request)
            except ZweaveError as error:
                if on_error == "raise":
                    raise ZweaveError(
                        f"request {index}: {error}" if len(listed) > 1 else str(error)
                    ) from None
                yield index, Result.refused(request, str(error))
        answers: dict[int, dict[int, Result]] = {index: {} for index in prepared}
        for index, delta in self._serve(prepared):
            if delta.result is not None:
                found = answers[index]
                found[delta.sample] = delta.result
                if len(found) == listed[index].n:
                    yield index, Result.of_samples([found[sample] for sample in sorted(found)])

    def stream(self, request: Request) -> Iterator[Delta]:
        """Yields what each step adds to the request's answer, or its answers; leaving the loop early cancels it."""
        for _, delta in self._serve({0: self._prepare(request)}):
            yield delta

    def pooled_states(self, prompts: Seq[Seq[int]], layers: Seq[int]) -> Tensor:
        """Mean over each prompt's tokens of the base model's hidden states that enter each layer.

        prompts: token ids.
        layers: from 1 to the model's number of layers. Nothing above the highest is computed.
        Returns [layers, prompts, hidden] float32. Raises ZweaveError for what cannot be a prompt or a layer,
        and when other requests have taken the cache.
        """
        check_layers(layers, self.model.config.num_layers)
        sequences = [self._prepare(Request(prompt)) for prompt in prompts]
        with self.guard.exclusive():
            return pooled_states(self._runner, self._blocks, sequences, layers, self.config.max_batch_tokens)

    def prompt_logits(self, prompt: str | Seq[int], expert: ExpertChoice = None) -> Tensor:
        """Logits [tokens, vocabulary], float32, of every token of a prompt under an expert or mixture.

        Raises ZweaveError for what cannot be a prompt, and when other requests have taken the cache.
        """
        sequence = self._prepare(Request(prompt, expert=expert, max_tokens=1))
        with self.guard.exclusive():
            return prompt_logits(self._runner, self._blocks, self.bank, sequence)

    def add(self, request: Request) -> int:
        """Queues a request and returns its id; the deltas come from `step`."""
        sequence = self._prepare(request)
        with self.guard.exclusive():
            return self._queue(sequence)

    def cancel(self, request_id: int) -> None:
        """Ends a request where it stands; its last delta comes with the next step. Unknown ids are ignored.

        It may be called from any thread.
        """
        self.guard.soon(lambda: self._output_processor.cancel(request_id))

    def rescale(self, request_id: int, mixture: ExpertChoice) -> None:
        """Changes the mixture of a request while it generates, from the next step on (docs/engine.md).

        It may be called from any thread. Unknown ids are ignored. Raises ZweaveError for an expert that is not loaded.
        """
        if mixture == "auto":
            raise ZweaveError("rescale takes an expert or a mixture, not 'auto'")
        resolved = self.bank.resolve(Mixture.parse(mixture))
        if resolved.invocation_tokens:
            raise ZweaveError("rescale takes no activated LoRA, which begins where the prompt says so")
        self._rescales.ask(request_id, resolved)

    @property
    def has_work(self) -> bool:
        """Whether a request is unfinished, or a delta has not been returned by `step` yet."""
        return self._output_processor.has_work

    def stats(self) -> EngineStats:
        """What was computed and reused so far, how full the cache is, and how many steps that took."""
        self.guard.check_process()
        return replace(
            self._scheduler.stats(),
            steps=self._num_steps,
            decode_steps=self._num_decode_steps,
            wait_seconds=self._wait_seconds,
        )

    def step(self) -> list[Delta]:
        """Computes one batch and returns what it added to each request that it touched.

        On a GPU a step launches its batch, and takes in what the one before has computed while the device is busy.

        Early first passes (below the top layer, with a dispatcher that answers at once) run first, by themselves.
        Then everything is scheduled again: what was scheduled before and not computed, and the requests whose
        expert has just been chosen. So a dispatched request starts its answer in the step of its first pass.

        If it raises (or Ctrl-C does), nothing is lost: the next step goes on where this one stopped.
        """
        with self.guard.exclusive():
            return self._step()

    def _step(self, request_ids: Container[int] | None = None) -> list[Delta]:
        """One step; returns the deltas of some requests and keeps the others', or returns all."""
        if self._rescales:
            self._land(0)
            self._rescales.apply()
        # After an interruption there may be more; and what a launch left on the device that did not come to its end
        # may have changed the tokens that the next one would find there.
        self._land(0 if self._is_launching else self._runner.lookahead)
        chunks = self._schedule()
        early = [chunk for chunk in chunks if self._first_passes.exits_early(chunk.sequence)]
        if early:
            self._launch(early)
            self._land(0)
            chunks = self._schedule()
        if chunks:
            self._launch(chunks)
        landed = self._land(self._runner.lookahead if chunks else 0)
        deltas = self._output_processor.take_deltas(request_ids)
        if not (chunks or early or landed or deltas):
            self._first_passes.wait(_MAX_WAIT)
        return deltas

    def _schedule(self) -> list[Chunk]:
        """The chunks to compute next. Dispatchers' answers are taken in first; requests that cannot run end."""
        for sequence, reason in self._first_passes.advance():
            self._output_processor.fail(sequence, reason)
        chunks, failed = self._scheduler.schedule()
        for sequence, reason in failed:
            self._output_processor.fail(sequence, reason)
        return chunks

    def _launch(self, chunks: list[Chunk]) -> None:
        """Gives chunks to the runner as one batch."""
        for chunk in chunks:
            chunk.sequence.launch(chunk.count, chunk.complete)
        try:
            start = time.perf_counter()
            self._is_launching = True
            with self.bank.turns.step():
                step = self._runner.launch(chunks)
            self._launched.append((step, self._spans(step.chunks), start))
            self._is_launching = False
            self._num_steps += 1
            self._num_decode_steps += all(chunk.count == 1 for chunk in chunks)
        except BaseException:
            for chunk in chunks:
                chunk.sequence.withdraw(chunk.count, chunk.complete)
            raise

    def _land(self, in_flight: int) -> int:
        """Takes in what launched batches have computed, until so many are in flight; returns how many it took in."""
        landed = 0
        while len(self._launched) > in_flight:
            step, spans, start = self._launched[0]
            before = time.perf_counter()
            step.wait()
            self._wait_seconds += time.perf_counter() - before
            for output in step.outputs():
                self._output_processor.process(output)
            self._launched.popleft()
            landed += 1
            if self.observer is not None:
                self.observer(StepTrace(start, time.perf_counter(), spans, self.stats()))
        return landed

    def _spans(self, chunks: Seq[Chunk]) -> list[Span]:
        """What the observer is told of chunks, if there is one."""
        if self.observer is None:
            return []
        return [Span.of(chunk, self._first_passes.reads_scores(chunk.sequence)) for chunk in chunks]

    def _serve(self, prepared: dict[int, Sequence]) -> Iterator[tuple[int, Delta]]:
        """Runs sequences to their end and yields their deltas; those of other requests are kept for their own callers.

        Others may call between two deltas.

        prepared: emptied, so that what a sequence has goes when it ends.
        """
        indices = {sequence.request_id: index for index, sequence in prepared.items()}
        unfinished = {sequence.request_id: sequence.request.n for sequence in prepared.values()}
        try:
            with self.guard.exclusive():
                for index in list(prepared):
                    self._queue(prepared.pop(index))
            while unfinished:
                for delta in self._next_deltas(indices):
                    if delta.result is not None:
                        unfinished[delta.request_id] -= 1
                        if not unfinished[delta.request_id]:
                            del unfinished[delta.request_id]
                    yield indices[delta.request_id], delta
        finally:
            if unfinished:
                self.guard.soon(lambda: self._abandon(unfinished))

    def _next_deltas(self, request_ids: Container[int]) -> list[Delta]:
        """Deltas of some requests: those that wait for their caller, or what a step adds."""
        with self.guard.exclusive():
            return self._output_processor.take_deltas(request_ids) or self._step(request_ids)

    def _abandon(self, request_ids: Collection[int]) -> None:
        """Cancels requests for whose deltas nobody waits."""
        for request_id in request_ids:
            self._output_processor.cancel(request_id)
        self._output_processor.take_deltas(request_ids)

    def _prepare(self, request: Request) -> Sequence:
        """Checks a request against this model, the loaded experts and the dispatcher."""
        if isinstance(request, Request):
            request = self.named(request)
        sequence = self._input_processor.process(request)
        if request.is_auto and self._dispatcher_of(request) is None:
            self.check_expert("auto")
        return sequence

    def _dispatcher_of(self, request: Request) -> Dispatcher | None:
        """Who chooses the expert of a request; None for one that names it, or if there is nobody."""
        if not request.is_auto:
            return None
        return self.dispatcher if request.dispatcher is None else request.dispatcher

    def _queue(self, sequence: Sequence) -> int:
        dispatcher = self._dispatcher_of(sequence.request)
        others = self._input_processor.further(sequence)
        for answer in (sequence, *others):
            self._output_processor.add(answer)
            if dispatcher is None:
                self._scheduler.add(answer)
        if dispatcher is not None:
            self._first_passes.add(sequence, dispatcher, others)
        return sequence.request_id
