"""What a request may do to the logits before its next token is sampled."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class LogitsEdit(Protocol):
    """Changes the logits of a request's next token; log-probabilities and scores stay those of the model.

    A state must follow from the tokens generated so far alone, and the same ones may come twice: a sequence that was
    preempted, or a step that was interrupted, goes on right.
    """

    def edit(self, logits: Tensor, generated: Sequence[int]) -> None:
        """Changes logits [vocabulary] float32, a copy of their own, in place.

        generated: the request's tokens so far.

        The logits may lie on a device: nothing here may wait for it, and tensors go there by `beside`.
        """
