"""The reference's two passes: it classifies by what the model writes, rebuilds the weights, reads the prompt again."""

from collections.abc import Sequence

import torch

from ..fixtures import Stage
from ..peers.peer_providers import Recompose, generate
from ..reference_model import load_transformers


class Reference:
    """One request at a time, by transformers. The base stays in memory beside the model that is rebuilt: it need not be
    restored for the next first pass.

    guess: tokens that it writes to classify.
    """

    def __init__(self, stage: Stage, dtype: str, guess: int) -> None:
        self.dtype, self.guess = dtype, guess
        self._stage = stage
        directory, torch_dtype = stage.checkpoint.directory, getattr(torch, dtype)
        self._base = load_transformers(directory, torch_dtype)
        self._rebuilt = Recompose(directory, stage.decomposition, torch_dtype)

    def classify(self, question: Sequence[int]) -> list[int]:
        """The first pass: what the base writes after the question."""
        return generate(self._base, [question], self.guess)[0]

    def rebuild(self, index: int) -> None:
        self._rebuilt.become(self._stage.expert("always", index))

    def answer(self, prompt: Sequence[int], new: int) -> list[int]:
        """The second pass, under what was rebuilt last."""
        return generate(self._rebuilt.model, [prompt], new)[0]
