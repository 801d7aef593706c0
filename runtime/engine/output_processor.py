"""Turns what the model computed into tokens, text and results."""

from collections.abc import Container
from collections.abc import Sequence as Seq
from dataclasses import replace

from ..request import Delta, FinishReason, Result
from ..scheduler.chunk import Chunk
from ..scheduler.scheduler import Scheduler
from ..scheduler.sequence import Sequence
from .first_pass import FirstPassManager
from .step import ChosenSlot, ChunkOutput, SampledToken

_NO_TOKEN_LEFT = (
    "the request excludes every token (its parameters, or a response_format that became too complex), "
    "or the model's logits are not finite"
)
_NOT_FINITE = (
    "the model's logits are not finite or all the same: its weights or the expert's scales are too large"
)


class OutputProcessor:
    """Knows the unfinished requests, and keeps their deltas until they are delivered.

    A sequence is marked as computed after its token is appended.

    eos_ids: the tokens that end an answer
    """

    def __init__(self, scheduler: Scheduler, first_passes: FirstPassManager, eos_ids: Seq[int]) -> None:
        self._scheduler = scheduler
        self._first_passes = first_passes
        self._eos_ids = eos_ids
        self._sequences: dict[int, list[Sequence]] = {}
        self._deltas: list[Delta] = []

    @property
    def has_work(self) -> bool:
        """Whether a request is unfinished or a delta undelivered."""
        return bool(self._sequences or self._deltas)

    def add(self, sequence: Sequence) -> None:
        """Takes note of a new request, or of a further answer to one."""
        self._sequences.setdefault(sequence.request_id, []).append(sequence)

    def take_deltas(self, request_ids: Container[int] | None = None) -> list[Delta]:
        """Hands undelivered deltas out: those of some requests, or all."""
        taken = [d for d in self._deltas if request_ids is None or d.request_id in request_ids]
        self._deltas = [
            d for d in self._deltas if request_ids is not None and d.request_id not in request_ids
        ]
        return taken

    def unfinished(self, request_id: int) -> list[Sequence]:
        """The answers to a request that have not ended; none for unknown ids."""
        return [*self._sequences.get(request_id, ())]

    def cancel(self, request_id: int) -> None:
        """Ends a request with the text so far; unknown ids are ignored."""
        for sequence in self.unfinished(request_id):
            self._finish(sequence, sequence.text.finish(), [], "cancelled")

    def fail(self, sequence: Sequence, error: str) -> None:
        """Ends a request with an error."""
        self._finish(sequence, "", [], "error", error)

    def process(self, output: ChunkOutput) -> None:
        """Marks a chunk as computed, and appends the token that was sampled after it.

        Ignores the chunk of a sequence that ended while it was in flight. If it is interrupted it may be called again:
        what was done is not done twice.
        """
        chunk, sequence = output.chunk, output.chunk.sequence
        text, token_ids = "", list[int]()
        if sequence.in_flight and chunk.start == sequence.landed_position:
            for layer in chunk.cache_layers:
                sequence.cache_states(layer, chunk.start, output.states[layer])
            if output.prompt_logprobs:
                sequence.add_prompt_logprobs(chunk.start + 1, output.prompt_logprobs)
            reason = self._settle(sequence, output.chosen)
            if reason is not None:
                self._finish(sequence, "", [], "error", reason)
            elif sequence.pooling is not None:
                self._pool_states(output)
            elif output.sampled is None:
                sequence.land(chunk.count, chunk.complete)
            elif not output.sampled.is_finite:
                reason = _NO_TOKEN_LEFT if sequence.edits else _NOT_FINITE
                self._finish(sequence, sequence.text.finish(), [], "error", reason)
            else:
                text, token_ids = self._append_token(chunk, output.sampled)
        if sequence.ended is not None:
            reason, sequence.ended = sequence.ended, None
            self._finish(sequence, text, token_ids, reason)
        elif token_ids:
            self._deltas.append(_delta(sequence, text, token_ids))

    def _settle(self, sequence: Sequence, chosen: ChosenSlot | None) -> str | None:
        """Takes in the expert that the device has chosen; returns the reason if the request fails."""
        if chosen is None or sequence.choice is None:
            return None
        return self._first_passes.on_chosen(sequence, chosen.slot, chosen.probabilities)

    def _pool_states(self, output: ChunkOutput) -> None:
        """Adds a chunk's states to the mean that a first pass wants."""
        chunk, sequence = output.chunk, output.chunk.sequence
        pooling = sequence.pooling
        assert pooling is not None
        if output.pooled is None:
            pooling.add(chunk.start, output.states[pooling.layer])
        else:
            pooling.add_sum(chunk.start, chunk.count, output.pooled.numpy())
        exit_layer = pooling.exit_layer
        sequence.land(chunk.count, chunk.complete, None if exit_layer is None else output.states[exit_layer])
        if pooling.done:
            self._first_passes.on_pooled(sequence)

    def _append_token(self, chunk: Chunk, sampled: SampledToken) -> tuple[str, list[int]]:
        """Appends the next token, unless that was done before; returns what it adds to the request."""
        sequence = chunk.sequence
        if sampled.scores is not None:
            sequence.scores = sampled.scores
        text, token_ids = "", list[int]()
        if len(sequence.token_ids) == chunk.stop:
            text, _ = sequence.append(sampled.token_id, sampled.logprob, self._eos_ids)
            token_ids = [sampled.token_id]
        sequence.land(chunk.count, chunk.complete)
        return text, token_ids

    def _finish(
        self,
        sequence: Sequence,
        text: str,
        token_ids: list[int],
        reason: FinishReason,
        error: str | None = None,
    ) -> None:
        """Ends a sequence: a request gets its last delta, a first pass its scores."""
        self._scheduler.remove(sequence)
        if self._first_passes.on_scored(sequence, error):
            return
        self._first_passes.remove(sequence)
        self._forget(sequence)
        self._deltas.append(_delta(sequence, text, token_ids, sequence.result(reason, error)))

    def _forget(self, sequence: Sequence) -> None:
        answers = self._sequences.get(sequence.request_id, [])
        if sequence in answers:
            answers.remove(sequence)
        if not answers:
            self._sequences.pop(sequence.request_id, None)


def _delta(sequence: Sequence, text: str, token_ids: list[int], result: Result | None = None) -> Delta:
    logprobs = None
    if sequence.request.logprobs is not None:
        logprobs = sequence.logprobs[len(sequence.logprobs) - len(token_ids) :]
    delta = Delta(sequence.request_id, text, token_ids, result, sequence.sample, logprobs)
    if sequence.prompt_logprobs and token_ids and len(token_ids) == sequence.num_generated:
        prompt = sequence.token_ids[: sequence.num_prompt_tokens]
        return replace(delta, prompt_logprobs=[*sequence.prompt_logprobs], prompt_token_ids=prompt)
    return delta
