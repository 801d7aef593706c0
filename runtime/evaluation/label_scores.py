"""The base model's scores of a task's labels, each prompt computed once."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..engine.engine import Engine
from ..errors import ZweaveError
from ..request import Request
from ..tasks import Sample, Task, label_ids, prompt_ids


class LabelScores:
    """Log-probabilities of labels at the prompt's end, under the base model and over its whole vocabulary.

    They are the label logits less a constant of the prompt, which cancels in any choice between labels.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[tuple[str, tuple[str, ...]], list[float]] = {}

    def of(self, task: Task, samples: Sequence[Sample]) -> NDArray[np.float64]:
        """Scores [samples, labels]; unknown ones are computed as one batch."""
        ids = label_ids(self._engine.tokenizer, task)
        keys = [(sample.prompt, task.labels) for sample in samples]
        missing = [key for key in dict.fromkeys(keys) if key not in self._known]
        results = self._engine.generate(
            Request(prompt_ids(self._engine.tokenizer, prompt), max_tokens=1, score=ids)
            for prompt, _ in missing
        )
        for key, result in zip(missing, results, strict=True):
            if result.scores is None:
                raise ZweaveError(f"the task {task.name} cannot be scored: {result.error}")
            self._known[key] = result.scores
        return np.array([self._known[key] for key in keys]).reshape(len(keys), len(ids))
