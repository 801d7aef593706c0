"""When the device may choose a request's expert itself, while the request goes on."""

from ..dispatcher import ReadState
from ..errors import ZweaveError
from ..experts.bank import Bank, ResolvedMixture
from ..experts.mixture import Mixture
from ..request import Request
from ..scheduler.choice import Choice
from ..scheduler.pooling import Pooling
from ..text.tokenizer import Tokenizer
from .own_words import in_own_words


def choice_on_device(
    request: Request,
    text_end: int,
    probe: ReadState,
    pooling: Pooling,
    bank: Bank,
    tokenizer: Tokenizer,
    width: int,
) -> Choice | None:
    """The choice in flight that a first pass can be, or None.

    The prompt up to the pooled tokens' end must be the base model's whatever is chosen, and nothing else may depend on
    it: all candidates are the base model or act from there on, and none puts the prompt into words of its own.

    text_end: index of the first token that an "after_prompt" expert acts on
    pooling: what takes the choice's stead if there are too few slots
    width: of the model's states
    """
    classifier = probe.classifier
    if classifier is None or classifier.width != width:
        return None
    if request.kv_reuse != "exact" or pooling.stop != text_end:
        return None
    try:
        mixtures = [bank.resolve(Mixture.parse(choice)) for choice in classifier.experts]
    except ZweaveError:  # reported if it is chosen
        return None
    num_experts = len({mixture.digest for mixture in mixtures if mixture.parts})
    if num_experts >= bank.num_slots or not all(_fits(mixture, request, tokenizer) for mixture in mixtures):
        return None
    return Choice(pooling, classifier, mixtures)


def _fits(mixture: ResolvedMixture, request: Request, tokenizer: Tokenizer) -> bool:
    """Whether a candidate leaves the prompt as it is, and its keys and values the base model's."""
    if not mixture.parts:
        return True
    _, asked = in_own_words(request, mixture.prompt_template, tokenizer)
    return mixture.scope == "after_prompt" and asked is None
