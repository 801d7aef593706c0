"""Routes: which mixture answers a prompt of which label."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..dispatcher import Dispatch
from ..errors import ZweaveError
from ..experts.mixture import ExpertChoice, Mixture, spread
from ..validation import as_number, check_flag, is_number, normalise


@dataclass(frozen=True, slots=True)
class Routes:
    """Maps labels to experts.

    experts: the expert of each label, as `Request.expert` takes it; None is the base model.
    threshold: the base model answers if the likeliest label's probability is below it.
    soft: answer under the mixture of all experts, weighted by their labels' probabilities (docs/dispatch.md).
    """

    experts: Mapping[str, ExpertChoice] = field(hash=False)
    threshold: float = 0.0
    soft: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.experts, Mapping) or not self.experts:
            raise ZweaveError("a dispatcher's experts must map labels to experts, one label at least")
        for label, choice in self.experts.items():
            if not isinstance(label, str):
                raise ZweaveError(f"a label must be a string, not {label!r}")
            Mixture.parse(choice)
        normalise(self, ("threshold",), as_number)
        threshold = self.threshold
        if not (is_number(threshold) and 0 <= threshold <= 1):
            raise ZweaveError(f"a dispatcher's threshold must be from 0 to 1, not {threshold!r}")
        check_flag("soft", self.soft)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.experts)

    @property
    def candidates(self) -> tuple[ExpertChoice, ...]:
        """All experts that may be chosen, without the base model."""
        return tuple(choice for choice in self.experts.values() if Mixture.parse(choice) is not None)

    def dispatch(self, labels: Sequence[str], probabilities: Sequence[float]) -> Dispatch:
        """The choice for the probabilities of labels, which may include labels without a route.

        Raises ZweaveError if a probability is not finite.
        """
        if not all(math.isfinite(p) for p in probabilities):
            raise ZweaveError("the probabilities of the labels are not finite")
        by_label = dict(zip(labels, probabilities, strict=True))
        label = max(by_label, key=by_label.__getitem__)
        choice = self.experts.get(label)
        if by_label[label] < self.threshold:
            choice = None
        elif self.soft and choice is not None:
            choice = self._soft_mixture(by_label)
        # Rounding may leave a sum a little above 1.
        return Dispatch(label, by_label, choice, min(by_label[label], 1.0))

    def _soft_mixture(self, probabilities: Mapping[str, float]) -> ExpertChoice:
        """sum_k p_k z_k over the experts without the base model, their p scaled to a sum of 1."""
        shares = [
            (mixture, probabilities.get(label, 0.0))
            for label, choice in self.experts.items()
            if (mixture := Mixture.parse(choice)) is not None
        ]
        whole = sum(share for _, share in shares)
        layers = max(
            (len(alpha) for m, _ in shares for _, alpha in m.parts if isinstance(alpha, tuple)), default=1
        )
        weights: dict[str, list[float]] = {}
        for mixture, share in shares:
            for name, alpha in mixture.parts:
                row = weights.setdefault(name, [0.0] * layers)
                for layer, value in enumerate(spread(name, alpha, layers)):
                    row[layer] += share / whole * value
        if layers == 1:
            return {name: row[0] for name, row in weights.items()}
        return {name: tuple(row) for name, row in weights.items()}
