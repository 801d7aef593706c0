"""The strategies that `two-pass` compares, and how many tokens of a prompt they compute twice."""

from collections.abc import Mapping, Sequence
from functools import partial

from zweave.dispatch import Dispatcher, HiddenDispatcher, Prompt, PromptDispatcher, ReadScores, Routes
from zweave.dispatch.early_classifier import EarlyClassifier
from zweave.engine import Engine
from zweave.errors import ZweaveError
from zweave.request import Result
from zweave.tasks import answer_ids

# A word of one token for each of TASKS, as the question names it.
TASKS = ("sst2", "trec", "addition")
QUESTION = "Is this text a review, a question or a sum?"
OPENING = "This text is a"
WORDS = (" review", " question", " sum")
LETTERS = ("r", "q", "s")

NAMED = "named"
HIDDEN, AFTER, FIRST = "hidden", "prompt, question after the text", "prompt, question first"


def dispatchers(
    engine: Engine, classifier: EarlyClassifier, experts: Sequence[str]
) -> Mapping[str, Dispatcher]:
    """The dispatcher of each strategy.

    experts: the experts of the classifier's labels and of the question's words, in their order.
    """
    by_state = Routes(dict(zip(classifier.labels, experts, strict=True)))
    by_word = Routes(dict(zip(_words(engine), experts, strict=True)))
    asking = partial(PromptDispatcher, by_word, QUESTION, OPENING)
    return {
        HIDDEN: HiddenDispatcher(classifier, by_state),
        AFTER: asking().calibrated(engine),
        FIRST: asking(instruction_first=True).calibrated(engine),
    }


def _words(engine: Engine) -> tuple[str, ...]:
    """The question's words; letters if a word is more than one token."""
    whole = all(len(answer_ids(engine.tokenizer, word)) == 1 for word in WORDS)
    return WORDS if whole else LETTERS


def as_prompt(engine: Engine, tokens: Sequence[int]) -> Prompt:
    """The prompt that a dispatcher gets of a request with these tokens."""
    end = engine.tokenizer.after_prompt_start(tokens)
    return Prompt(tuple(tokens), end, engine.tokenizer)


def computed_twice(dispatcher: Dispatcher, prompt: Prompt, result: Result) -> int:
    """How many tokens of a prompt both passes computed, by the engine's counts.

    Each pass finds its first tokens in the cache and computes the rest, so that both computed the end of the text.
    """
    if result.dispatch is None:
        raise ZweaveError("the request was not dispatched")
    text, behind = len(prompt.tokens[: prompt.text_end]), 0
    probe = dispatcher.probe(prompt)
    if isinstance(probe, ReadScores):
        words = prompt.tokens[
            prompt.tokenizer.user_text_start(prompt.tokens, prompt.text_end) : prompt.text_end
        ]
        text, behind = len(words), len(probe.tokens) - _end_of(words, probe.tokens)
    first = min(max(result.dispatch.tokens - behind, 0), text)
    second = min(max(prompt.text_end - result.reused_tokens - result.resumed_tokens, 0), text)
    return min(first, second)


def _end_of(words: Sequence[int], tokens: Sequence[int]) -> int:
    """Where the words end in the tokens."""
    for end in range(len(tokens), len(words) - 1, -1):
        if tuple(tokens[end - len(words) : end]) == tuple(words):
            return end
    raise ZweaveError("the dispatcher's prompt does not hold the request's text")
