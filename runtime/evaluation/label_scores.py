"""The base model's scores of a task's labels, each prompt computed once."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..engine.engine import Engine
from ..errors import ZweaveError
from ..request import Request
from ..tasks import Sample, Task, label_tokens, prompt_ids


class LabelScores:
    """Log-probabilities of labels after the prompt, under the base model and over its whole vocabulary.

    A label's score is the sum over its tokens: the log of the probability that it follows (docs/tasks.md).
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[tuple[str, tuple[str, ...]], list[float]] = {}

    def of(self, task: Task, samples: Sequence[Sample]) -> NDArray[np.float64]:
        """Scores [samples, labels]; unknown ones are computed as one batch."""
        labels = label_tokens(self._engine.tokenizer, task)
        beginnings = _beginnings(labels)
        keys = [(sample.prompt, task.labels) for sample in samples]
        missing = [key for key in dict.fromkeys(keys) if key not in self._known]
        # A prompt's requests are neighbours: its keys and values are computed once for all of them.
        results = iter(
            self._engine.generate(
                Request([*prompt_ids(self._engine.tokenizer, prompt), *said], max_tokens=1, score=following)
                for prompt, _ in missing
                for said, following in beginnings.items()
            )
        )
        for key in missing:
            log_p: dict[tuple[int, ...], float] = {}
            for said, following in beginnings.items():
                result = next(results)
                if result.scores is None:
                    raise ZweaveError(f"the task {task.name} cannot be scored: {result.error}")
                for token, score in zip(following, result.scores, strict=True):
                    log_p[(*said, token)] = log_p.get(said, 0.0) + score
            self._known[key] = [log_p[tuple(label)] for label in labels]
        return np.array([self._known[key] for key in keys]).reshape(len(keys), len(labels))


def _beginnings(labels: Sequence[Sequence[int]]) -> dict[tuple[int, ...], list[int]]:
    """What labels begin with, the shortest first, each with the tokens that follow in a label, all different."""
    found: dict[tuple[int, ...], list[int]] = {}
    for length in range(max(map(len, labels), default=0)):
        for label in labels:
            if length < len(label):
                following = found.setdefault(tuple(label[:length]), [])
                if label[length] not in following:
                    following.append(label[length])
    return found
