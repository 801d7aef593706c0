"""Words that are not generated."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ...errors import ZweaveError, shortened
from .beside import beside


class BadWords:
    """Excludes the last token of a word where the answer ends with the tokens before it.

    words: each as its token ids.
    """

    def __init__(self, words: Sequence[Sequence[int]]) -> None:
        self._words = [(tuple(before), last) for *before, last in words]

    def edit(self, logits: Tensor, generated: Sequence[int]) -> None:
        """See `LogitsEdit`."""
        excluded = [
            last
            for before, last in self._words
            if last < len(logits)
            and len(before) <= len(generated)
            and tuple(generated[len(generated) - len(before) :]) == before
        ]
        if excluded:
            logits.index_fill_(0, beside(torch.tensor(excluded), logits), float("-inf"))


def bad_word_ids(words: Iterable[str], encode: Callable[[str], list[int]]) -> list[list[int]]:
    """The words as token ids, without and with a space before them.

    The second form counts where it has as many tokens and begins with another: there the space is part of the first
    one. Elsewhere the first form ends the second. Raises ZweaveError for a word of no token.
    """
    found: list[list[int]] = []
    for word in dict.fromkeys(words):
        bare, spaced = encode(word.lstrip()), encode(f" {word.lstrip()}")
        if not bare:
            raise ZweaveError(f"a bad word gives no token: leave {shortened(word)} out")
        found.append(bare)
        if len(spaced) == len(bare) and spaced[0] != bare[0]:
            found.append(spaced)
    return found
