"""Formats of answers compiled into automata over a tokenizer's tokens."""

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, TypeAlias

from ...errors import ZweaveError, one_line
from ..tokenizer import Tokenizer
from .response_format import ResponseFormat

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Kind: TypeAlias = Literal["json_schema", "regex", "choice", "grammar"]

# JSON may have blanks between any two of its parts: without a bound a model may go on with them for ever.
WHITE_SPACE = r"[ \t\r\n]{1,32}"
MAX_SECONDS = 10.0
# The compiler recurses along references, of which a text may be full; this is enough for the longest that is taken.
_STACK_BYTES = 512 << 20
_NUM_KEPT = 64
_stack_size_lock = threading.Lock()


class FormatCompiler:
    """Compiles formats for one tokenizer by llguidance, and keeps the latest.

    vocab_size: the model's; it may be more than the tokenizer knows.
    Raises ZweaveError without the package `llguidance`, and for a tokenizer that no answer could end with.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        if not tokenizer.eos_ids:
            raise ZweaveError(
                f"response_format needs an end token, and the files in {tokenizer.directory} name none: "
                "give generation_config.json an eos_token_id"
            )
        self._tokenizer = _llguidance_tokenizer(tokenizer, vocab_size)
        self._compiled = lru_cache(_NUM_KEPT)(self._compile)

    def matcher(self, form: ResponseFormat) -> "LLMatcher":
        """A new automaton at its beginning. ZweaveError, with the reason, for a format that cannot be compiled."""
        return self._compiled(form.source, _kind(form)).deep_copy()

    def _compile(self, source: str, kind: Kind) -> "LLMatcher":
        made: list[LLMatcher | ZweaveError] = []

        def make() -> None:
            try:
                made.append(_matcher(self._tokenizer, _grammar(source, kind)))
            except ZweaveError as error:
                made.append(error)

        _start(make).join(MAX_SECONDS)
        found = made[0] if made else ZweaveError(f"it takes more than {MAX_SECONDS:g} s to compile")
        if isinstance(found, ZweaveError):
            raise ZweaveError(f"response_format: the {kind} is refused: {found}")
        return found


def _kind(form: ResponseFormat) -> Kind:
    """Which of a format's fields is given; any JSON object is one of a schema."""
    if form.regex is not None:
        return "regex"
    if form.choice is not None:
        return "choice"
    return "grammar" if form.grammar is not None else "json_schema"


def _grammar(source: str, kind: Kind) -> str:
    """What llguidance compiles."""
    from llguidance import LLMatcher, grammar_from

    try:
        if kind == "json_schema":
            return LLMatcher.grammar_from_json_schema(source, defaults={"whitespace_pattern": WHITE_SPACE})
        return grammar_from(kind, source)
    except ValueError as error:
        raise ZweaveError(one_line(error)) from None


def _matcher(tokenizer: "LLTokenizer", grammar: str) -> "LLMatcher":
    """An automaton at its beginning; its first tokens are computed, where some fail that were compiled."""
    from llguidance import LLMatcher, LLParserLimits

    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
    trial = matcher if matcher.is_error() else matcher.deep_copy()
    trial.compute_logit_bias()
    if trial.get_error().startswith("NoExtension"):
        raise ZweaveError("there is no text that it allows")
    if trial.is_error():
        raise ZweaveError(one_line(ValueError(trial.get_error())))
    return matcher


def _llguidance_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> "LLTokenizer":
    try:
        from llguidance import LLTokenizer
    except ImportError:
        raise ZweaveError(
            "response_format needs the package llguidance: pip install 'zweave[structured]'"
        ) from None
    library = tokenizer.to_json()
    try:
        return LLTokenizer(library, n_vocab=vocab_size, eos_token=list(tokenizer.eos_ids))
    except ValueError as error:
        raise ZweaveError(
            f"response_format: llguidance cannot read {tokenizer.directory}'s tokenizer.json: {one_line(error)}"
        ) from None


def _start(function: Callable[[], None]) -> threading.Thread:
    """Runs a function in a thread with a deep stack, which does not keep the process from ending."""
    thread = threading.Thread(target=function, name="zweave-format", daemon=True)
    with _stack_size_lock:
        before = threading.stack_size(_STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    return thread
