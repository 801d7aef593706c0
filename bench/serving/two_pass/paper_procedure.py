"""The paper's two passes: classify by what the model writes, rebuild the weights, read the prompt again."""

from collections.abc import Sequence

import torch

from ..fixtures import Fixtures
from ..peers.peer_providers import Recompose, generate
from ..reference_model import load_transformers


class PaperProcedure:
    """Serves one request at a time by transformers.

    The base model stays in memory beside the rebuilt one, so that it need not be restored for the next first pass.

    guess: tokens that it writes to classify.
    """

    def __init__(self, fixtures: Fixtures, dtype: str, guess: int) -> None:
        self.dtype, self.guess = dtype, guess
        self._fixtures = fixtures
        directory, torch_dtype = fixtures.checkpoint.directory, getattr(torch, dtype)
        self._base = load_transformers(directory, torch_dtype)
        self._rebuilt = Recompose(directory, fixtures.decomposition, torch_dtype)

    def classify(self, question: Sequence[int]) -> list[int]:
        """The first pass: what the base writes after the question."""
        return generate(self._base, [question], self.guess)[0]

    def rebuild(self, index: int) -> None:
        self._rebuilt.become(self._fixtures.expert("always", index))

    def answer(self, prompt: Sequence[int], new: int) -> list[int]:
        """The second pass, under the weights that were rebuilt last."""
        return generate(self._rebuilt.model, [prompt], new)[0]
