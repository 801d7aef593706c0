"""Log-probabilities of a prompt's tokens."""

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq

from torch import Tensor

from ..request import TokenLogprob
from ..scheduler.chunk import Chunk
from .sampler import logprobs

# The logits of a whole prompt would take gigabytes.
_ROWS = 64


def prompt_logprobs(
    chunk: Chunk, states: Tensor, logits_of: Callable[[Tensor], Tensor]
) -> list[TokenLogprob]:
    """Log-probabilities of a chunk's `prompt_targets`.

    states: [tokens, hidden] float32, of the chunk's tokens as they leave the last layer.
    logits_of: the logits of such states.
    """
    count = chunk.sequence.request.prompt_logprobs or 0
    return [
        logprobs(row, token_id, count)
        for token_ids, rows in pieces(chunk.prompt_targets, states)
        for token_id, row in zip(token_ids, logits_of(rows), strict=True)
    ]


def pieces(token_ids: Seq[int], states: Tensor) -> Iterator[tuple[Seq[int], Tensor]]:
    """A few tokens at a time, and the states of the tokens before them."""
    for first in range(0, len(token_ids), _ROWS):
        some = token_ids[first : first + _ROWS]
        yield some, states[first : first + len(some)]
