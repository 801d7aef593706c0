"""What a step on the device gives: copied to the host as part of the step, and read once that has landed."""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from ...model.layer_schedule import StateCapture
from ...request import TokenLogprob
from ...scheduler.chunk import Chunk
from ..step import ChosenSlot, ChunkOutput, SampledToken
from ..step_arrays import row_ranges
from .backend import Backend, Work
from .prompt_logprobs import PromptLogprobs


@dataclass(frozen=True, slots=True)
class _Logprobs:
    """Log-probabilities that a request asks for, float64: of its token, of the likeliest with their ids, of `score`."""

    chosen: Tensor
    best: Tensor
    ids: Tensor
    scores: Tensor


@dataclass(frozen=True, slots=True)
class _Asked:
    """Which log-probabilities a request asks for.

    count: of the likeliest tokens.
    scored: [n] int64, the ids of `score`, on the host, where the device can read them.
    """

    count: int
    scored: Tensor
    device: torch.device

    @classmethod
    def of(cls, chunk: Chunk, backend: Backend) -> "_Asked | None":
        """What is asked for the token after a chunk; None for nothing."""
        request = chunk.sequence.request
        scored = request.score if chunk.num_generated == 0 else ()
        if request.logprobs is None and not scored:
            return None
        ids = backend.host_buffer(2 * len(scored)).view(torch.int64)
        ids.copy_(torch.tensor(scored, dtype=torch.int64))
        return cls(request.logprobs or 0, ids, backend.device)

    def logprobs_of(self, logits: Tensor, token: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The fields of `_Logprobs` on the device. logits: [vocabulary] float32; token: [1] int64."""
        values = torch.log_softmax(logits.double(), dim=-1)
        best, ids = values.topk(min(self.count, values.numel()))
        scored = self.scored.to(self.device, non_blocking=True)
        return values.index_select(0, token), best, ids, values.index_select(0, scored)


class StepOutput:
    """The outputs of a step's chunks.

    chunks: in the order of the batch.

    complete: those after which a token is sampled, in the order of the sampled tokens.
    wait: returns when the step has landed; set once it is submitted.
    states: of each capture, on the device.
    """

    def __init__(self, chunks: Seq[Chunk], backend: Backend) -> None:
        self.complete = [chunk for chunk in chunks if chunk.complete]
        self.wait: Work = lambda: None
        self.states: Mapping[StateCapture, Tensor] = {}
        self._chunks = chunks
        self._pooled_layers = {
            index: chunk.sequence.pooling.layer
            for index, chunk in enumerate(chunks)
            if chunk.sequence.pooling is not None
        }
        self._pooled: dict[int, Tensor] = {}
        self._of_prompts = {
            index: PromptLogprobs(chunk, backend)
            for index, chunk in enumerate(chunks)
            if chunk.top_layer is not None
        }
        self._captures = [chunk.capture_layers for chunk in chunks]
        self._ranges = row_ranges(chunks)
        self._rows = {id(chunk): row for row, chunk in enumerate(self.complete)}
        self._to_host: Callable[[Tensor], Tensor] = backend.to_host
        self._tokens = self._finite = torch.empty(0)
        self._asked = {row: _Asked.of(chunk, backend) for row, chunk in enumerate(self.complete)}
        self._logprobs: dict[int, _Logprobs] = {}
        self._slots = self._probabilities = torch.empty(0)
        self._choices: Mapping[int, int] = {}

    def receive_states(
        self, states: Mapping[StateCapture, Tensor], logits_of: Callable[[Tensor], Tensor]
    ) -> None:
        """Takes the states that the schedule captured, and what is wanted of them; within the step's work.

        logits_of: the logits of states that leave the last layer.
        """
        self.states = states
        for index, layer in self._pooled_layers.items():
            pooled = states[StateCapture(layer, *self._ranges[index])].sum(0, dtype=torch.float64)
            self._pooled[index] = self._to_host(pooled)
        for index, of_prompt in self._of_prompts.items():
            top_layer = self._chunks[index].top_layer
            assert top_layer is not None
            of_prompt.receive(states[StateCapture(top_layer, *self._ranges[index])], logits_of)

    def receive(self, logits: Tensor, tokens: Tensor, finite: Tensor) -> None:
        """Takes what the step has sampled; called within the step's work.

        logits: [n, vocabulary] float32; tokens, finite: [n] at least, of the complete chunks.
        """
        self._tokens, self._finite = self._to_host(tokens), self._to_host(finite)
        for row, asked in self._asked.items():
            if asked is not None:
                parts = asked.logprobs_of(logits[row], tokens[row : row + 1])
                self._logprobs[row] = _Logprobs(*map(self._to_host, parts))

    def receive_choices(self, choosing: Seq[int], slots: Tensor, probabilities: Tensor) -> None:
        """Takes what the step has chosen; called within the step's work. The arguments are those of `choosing.py`."""
        self._choices = {index: row for row, index in enumerate(choosing)}
        self._slots, self._probabilities = self._to_host(slots), self._to_host(probabilities)

    def output_of(self, index: int) -> ChunkOutput:
        """The output of a chunk; waits for the step."""
        self.wait()
        chunk, (first, last) = self._chunks[index], self._ranges[index]
        states = {layer: self.states[StateCapture(layer, first, last)] for layer in self._captures[index]}
        of_prompt = self._of_prompts[index].entries() if index in self._of_prompts else ()
        return ChunkOutput(
            chunk, self._sampled(chunk), states, self._pooled.get(index), self._chosen(index), of_prompt
        )

    def _chosen(self, index: int) -> ChosenSlot | None:
        row = self._choices.get(index)
        if row is None:
            return None
        return ChosenSlot(int(self._slots[row]), self._probabilities[row].tolist())

    def _sampled(self, chunk: Chunk) -> SampledToken | None:
        row = self._rows.get(id(chunk))
        if row is None:
            return None
        token_id, is_finite = int(self._tokens[row]), bool(self._finite[row])
        found = self._logprobs.get(row)
        if found is None or not is_finite:
            return SampledToken(token_id, is_finite)
        best = dict(zip(found.ids.tolist(), found.best.tolist(), strict=True))
        asked_for = chunk.sequence.request.logprobs is not None
        return SampledToken(
            token_id,
            is_finite,
            logprob=TokenLogprob(token_id, float(found.chosen), best) if asked_for else None,
            scores=found.scores.tolist() or None,
        )
