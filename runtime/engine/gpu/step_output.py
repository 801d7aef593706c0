"""What a step on the device gives: copied to the host as part of the step, and read once that has landed."""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from ...model.layer_schedule import StateCapture
from ...request import Request, TokenLogprob
from ...scheduler.chunk import Chunk
from ..step import ChunkOutput, SampledToken
from ..step_arrays import row_ranges
from .backend import Backend, Work


@dataclass(frozen=True, slots=True)
class _Logprobs:
    """Log-probabilities that a request asks for, float64: of its token, of the likeliest with their ids, of `score`."""

    chosen: Tensor
    best: Tensor
    ids: Tensor
    scores: Tensor


class StepOutput:
    """The outputs of a step's chunks.

    chunks: in the order of the batch.

    complete: those after which a token is sampled, in the order of the sampled tokens.
    wait: returns when the step has landed; set once it is submitted.
    states: of each capture, on the device; filled by the step.
    """

    def __init__(self, chunks: Seq[Chunk], backend: Backend) -> None:
        self.complete = [chunk for chunk in chunks if chunk.complete]
        self.wait: Work = lambda: None
        self.states: Mapping[StateCapture, Tensor] = {}
        self._chunks = chunks
        self._captures = [chunk.capture_layers for chunk in chunks]
        self._ranges = row_ranges(chunks)
        self._rows = {id(chunk): row for row, chunk in enumerate(self.complete)}
        self._to_host: Callable[[Tensor], Tensor] = backend.to_host
        self._tokens = self._finite = torch.empty(0)
        self._logprobs: dict[int, _Logprobs] = {}

    def receive(self, logits: Tensor, tokens: Tensor, finite: Tensor) -> None:
        """Takes what the step has sampled; called within the step's work.

        logits: [n, vocabulary] float32; tokens, finite: [n] at least, of the complete chunks.
        """
        self._tokens, self._finite = self._to_host(tokens), self._to_host(finite)
        for row, chunk in enumerate(self.complete):
            request = chunk.sequence.request
            scored = request.score if chunk.num_generated == 0 else ()
            if request.logprobs is not None or scored:
                self._logprobs[row] = self._logprobs_of(logits[row], tokens[row], request, scored or ())

    def output_of(self, index: int) -> ChunkOutput:
        """The output of a chunk; waits for the step."""
        self.wait()
        chunk, (first, last) = self._chunks[index], self._ranges[index]
        states = {layer: self.states[StateCapture(layer, first, last)] for layer in self._captures[index]}
        return ChunkOutput(chunk, self._sampled(chunk), states)

    def _sampled(self, chunk: Chunk) -> SampledToken | None:
        row = self._rows.get(id(chunk))
        if row is None:
            return None
        token_id, is_finite = int(self._tokens[row]), bool(self._finite[row])
        asked = self._logprobs.get(row)
        if asked is None or not is_finite:
            return SampledToken(token_id, is_finite)
        count = chunk.sequence.request.logprobs
        best = dict(zip(asked.ids.tolist(), asked.best.tolist(), strict=True))
        return SampledToken(
            token_id,
            is_finite,
            logprob=None if count is None else TokenLogprob(token_id, float(asked.chosen), best),
            scores=asked.scores.tolist() or None,
        )

    def _logprobs_of(self, logits: Tensor, token: Tensor, request: Request, scored: Seq[int]) -> _Logprobs:
        values = torch.log_softmax(logits.double(), dim=-1)
        best, ids = values.topk(min(request.logprobs or 0, values.numel()))
        wanted = torch.tensor(scored, dtype=torch.int64, device=logits.device)
        parts = values[token], best, ids, values[wanted]
        return _Logprobs(*map(self._to_host, parts))
