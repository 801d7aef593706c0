"""An early classifier with the routes of its labels: all that the choice of an expert by a mean state takes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..dispatcher import Dispatch
from ..experts.mixture import ExpertChoice
from .early_classifier import EarlyClassifier
from .routes import Routes


@dataclass(frozen=True, slots=True, eq=False)
class RoutedClassifier:
    """A `StateClassifier` of routes that are not soft; the base model answers labels without a route."""

    classifier: EarlyClassifier
    routes: Routes

    @property
    def width(self) -> int:
        return self.classifier.weight.shape[1]

    @property
    def experts(self) -> Sequence[ExpertChoice]:
        return [self.routes.experts.get(label) for label in self.classifier.labels]

    @property
    def threshold(self) -> float:
        return self.routes.threshold

    def to(self, device: torch.device) -> "RoutedClassifier":
        return replace(self, classifier=self.classifier.to(device))

    def probabilities(self, states: Tensor) -> Tensor:
        return self.classifier.probabilities(states)

    def dispatch(self, probabilities: Sequence[float]) -> Dispatch:
        return self.routes.dispatch(self.classifier.labels, probabilities)
