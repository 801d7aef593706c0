"""Log-probabilities of a prompt's tokens on the device."""

from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor

from ...request import TokenLogprob
from ...scheduler.chunk import Chunk
from ..prompt_logprobs import pieces
from .backend import Backend


class PromptLogprobs:
    """Those of a chunk's `prompt_targets`, a few rows at a time."""

    def __init__(self, chunk: Chunk, backend: Backend) -> None:
        self._targets = chunk.prompt_targets
        self._count = chunk.sequence.request.prompt_logprobs or 0
        self._backend = backend
        self._ids = backend.host_buffer(2 * len(self._targets)).view(torch.int64)
        self._ids.copy_(torch.tensor(self._targets))
        self._found: list[tuple[Tensor, Tensor, Tensor]] = []

    def receive(self, states: Tensor, logits_of: Callable[[Tensor], Tensor]) -> None:
        """Computes them of the chunk's states as they leave the last layer; within the step's work."""
        token_ids, to_host = self._ids.to(states.device, non_blocking=True), self._backend.to_host
        first = 0
        for some, rows in pieces(self._targets, states):
            values = torch.log_softmax(logits_of(rows).double(), dim=-1)
            best, ids = values.topk(min(self._count, values.shape[-1]))
            chosen = values.gather(1, token_ids[first : first + len(some), None])
            self._found.append((to_host(chosen), to_host(ids), to_host(best)))
            first += len(some)

    def entries(self) -> list[TokenLogprob]:
        """What was found; once the step has landed."""
        chosen, ids, best = (
            chain.from_iterable(part.tolist() for part in parts) for parts in zip(*self._found, strict=True)
        )
        return [
            TokenLogprob(token_id, logprob, dict(zip(some_ids, some_best, strict=True)))
            for token_id, [logprob], some_ids, some_best in zip(self._targets, chosen, ids, best, strict=True)
        ]
