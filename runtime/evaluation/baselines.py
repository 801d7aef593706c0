"""The baselines beside every result: how well a task is answered without any adaptation of weights.

majority: the commonest answer of the training samples
base, labels only: the likeliest label
base, calibrated: the same after the mean over unlabelled training prompts is subtracted from each label's score
logistic regression: on the label scores of labelled training samples (scikit-learn)
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ZweaveError
from ..tasks import Sample, Task, balanced_shots
from .label_scores import LabelScores
from .method import Method

Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Baselines:
    """The data that baselines may use.

    scores: the base model's label scores.
    train: training samples, in the seed's order.
    seed: of the order and of what is drawn.
    shots: how many samples a baseline takes.
    """

    scores: LabelScores
    train: Sequence[Sample]
    seed: int
    shots: int


@dataclass(frozen=True, slots=True)
class Majority:
    of: Baselines
    name: str = "majority"
    parameters: int | None = None

    def answers(self, task: Task, samples: Sequence[Sample]) -> list[str]:
        ((answer, _),) = Counter(sample.answer for sample in self.of.train).most_common(1)
        return [answer] * len(samples)


@dataclass(frozen=True, slots=True)
class Restricted:
    of: Baselines
    name: str = "base, labels only"
    parameters: int | None = None

    def answers(self, task: Task, samples: Sequence[Sample]) -> list[str]:
        return likeliest(task, self.of.scores.of(task, samples))


@dataclass(frozen=True, slots=True)
class Calibrated:
    of: Baselines
    name: str = "base, calibrated"
    parameters: int | None = None

    def answers(self, task: Task, samples: Sequence[Sample]) -> list[str]:
        scores = self.of.scores
        mean = scores.of(task, self.of.train[: self.of.shots]).mean(axis=0)
        return likeliest(task, scores.of(task, samples) - mean)


@dataclass(frozen=True, slots=True)
class Regression:
    of: Baselines
    name: str = "logistic regression on label scores"
    parameters: int | None = None

    def answers(self, task: Task, samples: Sequence[Sample]) -> list[str]:
        drawn = balanced_shots(self.of.train, task.labels, self.of.seed, self.of.shots)
        model = logistic_regression()
        if len({sample.answer for sample in drawn}) == 1:
            return [drawn[0].answer] * len(samples)
        model.fit(self.of.scores.of(task, drawn), [sample.answer for sample in drawn])
        return [str(answer) for answer in model.predict(self.of.scores.of(task, samples))]


def baselines(
    scores: LabelScores, task: Task, data: Path | None, seeds: Sequence[int], shots: int = 256
) -> list[Method]:
    """The baselines of a task: all of them if it has labels, else majority alone.

    data: as `Task.samples` takes it.
    seeds: baselines that draw samples run once for each seed, the others once.
    Raises ZweaveError as the task does. Without training samples the baselines that need them are left out.
    """
    if not task.has("train", data):
        return [Restricted(Baselines(scores, (), 0, shots))] if task.labels else []
    views = [Baselines(scores, task.samples("train", data, seed), seed, shots) for seed in seeds]
    found: list[Method] = [Majority(views[0])]
    if task.labels:
        found.append(Restricted(views[0]))
        found += [Calibrated(view) for view in views]
        found += [Regression(view) for view in views]
    return found


def likeliest(task: Task, scores: Scores) -> list[str]:
    """The label of the largest score of each row."""
    return [task.labels[index] for index in scores.argmax(axis=1)]


def logistic_regression() -> Any:
    """Standardised features and an L2 penalty of 1; ZweaveError without scikit-learn."""
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise ZweaveError("logistic regression needs scikit-learn: pip install 'zweave[train]'") from None
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
