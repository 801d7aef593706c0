"""The edits that a request asks for."""

from collections.abc import Iterator, Sequence
from functools import partial

from ...request import Request
from ...scheduler.logits_edit import LogitsEdit
from ...text.tokenizer import Tokenizer
from .bad_words import BadWords, bad_word_ids
from .logit_bias import LogitBias
from .min_tokens import MinTokens
from .penalties import Penalties


def edits_of(request: Request, prompt: Sequence[int], tokenizer: Tokenizer) -> tuple[LogitsEdit, ...]:
    """The edits of a request's logits, in the order in which they act (vLLM's); none for most requests.

    prompt: its token ids.
    """
    return tuple(_edits(request, prompt, tokenizer))


def _edits(request: Request, prompt: Sequence[int], tokenizer: Tokenizer) -> Iterator[LogitsEdit]:
    if request.bad_words:
        yield BadWords(bad_word_ids(request.bad_words, partial(tokenizer.encode, special=False)))
    ends = {*tokenizer.eos_ids, *(request.stop_token_ids or ())} if request.min_tokens else ()
    if ends:
        yield MinTokens(request.min_tokens, ends)
    sampling = request.sampling
    if sampling.logit_bias:
        yield LogitBias(sampling.logit_bias)
    if sampling.repetition_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty:
        yield Penalties(sampling, prompt)
