"""The strategy `hidden`: an early layer's mean state, read in the prefill that the answer continues from."""

from collections.abc import Sequence

from torch import Tensor

from ..dispatcher import Dispatch, Prompt, ReadState, RenamedLook
from ..errors import ZweaveError
from .early_classifier import EarlyClassifier
from .routed_classifier import RoutedClassifier
from .routes import Routes


class HiddenDispatcher(RenamedLook):
    """Chooses by an early classifier of the prompt's own mean state.

    classifier: as `zweave expert classifier` trains it.
    routes: of its labels; the base model answers labels without a route.
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
        self._probe = ReadState(classifier.layer, routes.candidates, self._choice_on_a_device())

    def probe(self, prompt: Prompt) -> ReadState:
        return self._probe

    def _choice_on_a_device(self) -> RoutedClassifier | None:
        """What `choose` does, in operations on tensors; None if it is more than the likeliest label's route."""
        is_own = type(self).choose is HiddenDispatcher.choose  # a subclass may choose otherwise
        is_plain = not self.routes.soft and len(set(self.classifier.labels)) == len(self.classifier.labels)
        return RoutedClassifier(self.classifier, self.routes) if is_own and is_plain else None

    def choose(self, prompt: Prompt, evidence: Sequence[float] | Tensor | None) -> Dispatch:
        assert isinstance(evidence, Tensor)
        probabilities = self.classifier.probabilities(evidence[None])[0]
        return self.routes.dispatch(self.classifier.labels, probabilities.tolist())
