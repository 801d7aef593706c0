"""How a prompt's states are read for a `ReadState` probe: on the way to the answer, or before it."""

from collections.abc import Sequence as Seq

import torch

from ..dispatcher import Prompt, ReadState, StateClassifier
from ..errors import ZweaveError, one_line
from ..experts.bank import Bank
from ..experts.mixture import ExpertChoice, Mixture
from ..experts.resolved_mixture import ResolvedMixture
from ..request import Request
from ..scheduler.choice import Choice
from ..scheduler.pooling import Pooling
from ..scheduler.sequence import Sequence
from ..text.tokenizer import Tokenizer
from .own_words import in_own_words


class StateReading:
    """Decides for each first pass that reads states how much of the prompt it computes, and who chooses.

    layers: of the model.
    width: of the model's states, where the device can choose by them; else None.
    """

    def __init__(self, bank: Bank, layers: int, width: int | None) -> None:
        self._bank = bank
        self._layers = layers
        self._width = width
        self._tried: StateClassifier | None = None

    def begin(self, sequence: Sequence, prompt: Prompt, probe: ReadState, is_blocking: bool) -> None:
        """Has a sequence's states read; ZweaveError if there is no such layer.

        is_blocking: whether the dispatcher may take its time
        """
        if not (isinstance(probe.layer, int) and 1 <= probe.layer <= self._layers):
            raise ZweaveError(f"a layer must be from 1 to {self._layers}, not {probe.layer!r}")
        pooling = self._pooling(sequence, prompt, probe, is_blocking)
        # A device knows no fallback.
        if sequence.fallback is None:
            sequence.choice = self._choice_on_device(sequence.request, prompt, probe, pooling)
        if sequence.choice is None:
            sequence.pooling = pooling
        else:
            sequence.adapted_from = prompt.text_end

    def _choice_on_device(
        self, request: Request, prompt: Prompt, probe: ReadState, pooling: Pooling
    ) -> Choice | None:
        """The choice in flight that the first pass can be, or None.

        The pooled tokens must be the base model's whatever is chosen, and the prompt the same: all candidates are the
        base model or act from there on, and none puts the prompt into words of its own.
        """
        classifier = probe.classifier
        if classifier is None or self._width is None:
            return None
        if classifier is not self._tried:
            _try_out(classifier)
            self._tried = classifier
        if classifier.width != self._width:
            return None
        if request.kv_reuse != "exact" or pooling.stop != prompt.text_end or not pooling.prompt_kv_reusable:
            return None
        mixtures = self._resolved(classifier.experts)
        num_experts = len({mixture.digest for mixture in mixtures if mixture.parts})
        if len(mixtures) < len(classifier.experts) or num_experts >= self._bank.num_slots:
            return None
        if not all(_leaves_prompt(mixture, request, prompt.tokenizer) for mixture in mixtures):
            return None
        return Choice(pooling, classifier, mixtures)

    def _pooling(self, sequence: Sequence, prompt: Prompt, probe: ReadState, is_blocking: bool) -> Pooling:
        """How much of the prompt is computed to pool its states, before the expert is known.

        What the answer can use of it depends on the experts that may be chosen:

        answer's prompt                       dispatcher       computed up to
        ------------------------------------  ---------------  -----------------------------------------------------
        may be the base model's: no expert,   returns at once  the probed layer; the answer's pass resumes there
          an "after_prompt" one, or           blocks           the top: the answer needs all layers, and the
          kv_reuse="approximate"                               dispatcher takes its time
        is an expert's in any case            either           the lowest layer that an expert adapts, where the
                                                               answer's pass resumes; at least the probed layer
        """
        candidates = [*self._resolved(probe.candidates), *([sequence.fallback] if sequence.fallback else [])]
        experts = [mixture for mixture in candidates if mixture.parts]
        approximate = sequence.request.kv_reuse == "approximate"
        reusable = approximate or not experts or any(expert.scope == "after_prompt" for expert in experts)
        exit_layer: int | None
        if not reusable:
            exit_layer = max(probe.layer, min(expert.first_layer for expert in experts))
        elif is_blocking:
            exit_layer = None
        else:
            exit_layer = probe.layer
        return Pooling(probe.layer, max(1, prompt.text_end), exit_layer, prompt_kv_reusable=reusable)

    def _resolved(self, choices: Seq[ExpertChoice]) -> list[ResolvedMixture]:
        """The mixtures that may be chosen, without those that cannot be found."""
        found = []
        for choice in choices:
            try:
                found.append(self._bank.resolve(Mixture.parse(choice)))
            except ZweaveError:  # reported if it is chosen
                continue
        return found


def _try_out(classifier: StateClassifier) -> None:
    """Raises ZweaveError unless a classifier, which may be a user's program, does what it must on a state of zeros."""
    try:
        probabilities = classifier.probabilities(torch.zeros(1, classifier.width))
        fits = probabilities.shape == (1, len(classifier.experts)) and probabilities.dtype == torch.float32
        fits = fits and 0 <= classifier.threshold <= 1
    except Exception as error:
        raise ZweaveError(f"the dispatcher's classifier fails: {one_line(error, with_type=True)}") from None
    if not fits:
        raise ZweaveError(
            "the dispatcher's classifier must give a float32 probability for each of its experts"
        )


def _leaves_prompt(mixture: ResolvedMixture, request: Request, tokenizer: Tokenizer) -> bool:
    """Whether a mixture leaves the prompt as it is, and its keys and values the base model's."""
    if not mixture.parts:
        return True
    _, asked = in_own_words(request, mixture.prompt_template, tokenizer)
    return mixture.scope == "after_prompt" and not mixture.invocation_tokens and asked is None
