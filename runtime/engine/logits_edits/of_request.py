"""The edits that a request asks for."""

from collections.abc import Sequence

from ...request import Request
from ...scheduler.logits_edit import LogitsEdit
from ...text.tokenizer import Tokenizer


def edits_of(request: Request, prompt: Sequence[int], tokenizer: Tokenizer) -> tuple[LogitsEdit, ...]:
    """The edits of a request's logits, in the order in which they act; none for most requests.

    prompt: its token ids.
    """
    return ()
