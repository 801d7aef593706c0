"""Tells prompts apart by an early layer's mean hidden state, read in the prefill that the answer goes on from."""

from collections.abc import Sequence

from torch import Tensor

from ..dispatcher import Dispatch, Prompt, ReadState
from ..errors import ZweaveError
from .early_classifier import EarlyClassifier
from .routes import Routes


class HiddenDispatcher:
    """classifier: as `zweave expert classifier` trains it. routes: of its labels; the base answers the others.

    Raises ZweaveError for routes of labels that the classifier does not know.
    """

    blocking = False

    def __init__(self, classifier: EarlyClassifier, routes: Routes) -> None:
        for label in routes.labels:
            if label not in classifier.labels:
                known = ", ".join(map(repr, classifier.labels))
                raise ZweaveError(f"the classifier has no label {label!r}: its labels are {known}")
        self.classifier = classifier
        self.routes = routes
        self._look = ReadState(classifier.layer, routes.candidates)

    def look(self, prompt: Prompt) -> ReadState:
        return self._look

    def choose(self, prompt: Prompt, seen: Sequence[float] | Tensor | None) -> Dispatch:
        assert isinstance(seen, Tensor)
        probabilities = self.classifier.probabilities(seen[None])[0]
        return self.routes.dispatch(self.classifier.labels, probabilities.tolist())
