"""The reference's two passes: it classifies by what the model writes, rebuilds the weights, reads the prompt again."""

from collections.abc import Sequence

from zweave.bench.peers import Recompose, generate
from zweave.bench.stage import Stage


class Reference:
    """One request at a time, by transformers. The base stays in memory beside the model that is rebuilt: it need not be
    restored for the next first pass.

    guess: tokens that it writes to classify.
    """

    def __init__(self, stage: Stage, guess: int) -> None:
        self.guess = guess
        self._stage = stage
        self._rebuilt = Recompose(stage.checkpoint.directory, stage.decomposition, stage.torch_dtype)

    def classify(self, question: Sequence[int]) -> list[int]:
        """The first pass: what the base writes after the question."""
        return generate(self._stage.transformers, [question], self.guess)[0]

    def rebuild(self, index: int) -> None:
        self._rebuilt.become(self._stage.expert("always", index))

    def answer(self, prompt: Sequence[int], new: int) -> list[int]:
        """The second pass, under what was rebuilt last."""
        return generate(self._rebuilt.model, [prompt], new)[0]
