"""The edits that a request asks for."""

from collections.abc import Iterator, Sequence

from ...request import Request
from ...scheduler.logits_edit import LogitsEdit
from ...text.tokenizer import Tokenizer
from .logit_bias import LogitBias
from .penalties import Penalties


def edits_of(request: Request, prompt: Sequence[int], tokenizer: Tokenizer) -> tuple[LogitsEdit, ...]:
    """The edits of a request's logits, in the order in which they act (vLLM's); none for most requests.

    prompt: its token ids.
    """
    return tuple(_edits(request, prompt, tokenizer))


def _edits(request: Request, prompt: Sequence[int], tokenizer: Tokenizer) -> Iterator[LogitsEdit]:
    sampling = request.sampling
    if sampling.logit_bias:
        yield LogitBias(sampling.logit_bias)
    if sampling.repetition_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty:
        yield Penalties(sampling, prompt)
