"""Turns requests into sequences: token ids, checked against what the model takes."""

from collections.abc import Sequence as Seq
from functools import cached_property
from itertools import count

from ..errors import ZweaveError, shortened
from ..experts.bank import Bank
from ..experts.mixture import Mixture
from ..experts.resolved_mixture import ResolvedMixture
from ..request import KVReuse, Request
from ..scheduler.sequence import Sequence
from ..text.detokenizer import IncrementalDetokenizer, StopChecker
from ..text.prompt_template import PromptTemplate
from ..text.structured import FormatCompiler, ResponseFormat
from ..text.tokenizer import Tokenizer
from ..validation import is_integer
from .logits_edits import LogitsEdit, edits_of
from .logits_edits.grammar import GrammarEdit
from .own_words import in_own_words


class InputProcessor:
    """Tokenizes requests and looks their experts up.

    vocab_size: token ids are below it
    max_length: tokens of a prompt and its answer together
    is_cache_limit: whether the KV cache sets that limit, not the model
    """

    def __init__(
        self, tokenizer: Tokenizer, bank: Bank, vocab_size: int, max_length: int, is_cache_limit: bool = False
    ) -> None:
        self.tokenizer = tokenizer
        self._bank = bank
        self._vocab_size = vocab_size
        self._max_length = max_length
        self._is_cache_limit = is_cache_limit
        self._ids = count()

    def process(
        self, request: object, request_id: int | None = None, chosen: ResolvedMixture | None = None
    ) -> Sequence:
        """The sequence of a request; the base model's while its expert is "auto".

        request_id: a new one by default
        chosen: the mixture of a request whose expert is "auto", once it is known

        Raises ZweaveError for what this model cannot take and for experts that are not loaded.
        """
        if not isinstance(request, Request):
            raise ZweaveError(f"the engine takes zweave.Request, not {type(request).__name__}")
        mixture = self._bank.resolve(request.mixture if chosen is None else chosen)
        request, asked = in_own_words(request, self._template(request, mixture), self.tokenizer)
        tokens = self._tokens(request)
        self._check_ids(tokens)
        self._check_ids(request.score)
        self._check_ids(request.stop_token_ids or ())
        self._check_ids([*(request.sampling.logit_bias or ())])
        if not tokens:
            raise ZweaveError("the prompt gives no token: give at least one")
        if len(tokens) >= self._max_length:
            raise ZweaveError(self._too_long(len(tokens)))
        return Sequence(
            request_id=next(self._ids) if request_id is None else request_id,
            request=request,
            mixture=mixture,
            token_ids=tokens,
            adapted_from=self.adapted_from(mixture, tokens, request.kv_reuse),
            max_length=min(self._max_length, len(tokens) + request.max_tokens),
            text=self._text(request, tokens),
            edits=self._edits(request, tokens),
            asked=asked,
            fallback=self._fallback(request) if chosen is None else None,
        )

    def further(self, sequence: Sequence) -> list[Sequence]:
        """The sequences of the further answers to a request, by that of the first."""
        request, tokens = sequence.request, sequence.token_ids[: sequence.num_prompt_tokens]
        return [
            Sequence(
                request_id=sequence.request_id,
                request=request,
                mixture=sequence.mixture,
                token_ids=[*tokens],
                adapted_from=sequence.adapted_from,
                max_length=sequence.max_length,
                text=self._text(request, tokens),
                edits=self._edits(request, tokens),
                sample=sample,
                asked=sequence.asked,
            )
            for sample in range(1, request.n)
        ]

    def adapted_from(self, mixture: ResolvedMixture, tokens: Seq[int], kv_reuse: KVReuse = "exact") -> int:
        """Position of the first token that a mixture acts on.

        Raises ZweaveError if the tokens do not hold those that activate it.
        """
        if mixture.invocation_tokens:
            return _invoked_at(mixture, tokens)
        spares_prompt = mixture.scope == "after_prompt" or (mixture.parts and kv_reuse == "approximate")
        return self.tokenizer.after_prompt_start(tokens) if spares_prompt else 0

    def _too_long(self, count: int) -> str:
        most = self._max_length - 1
        if self._is_cache_limit:
            return (
                f"the prompt has {count} tokens, and the KV cache of this engine takes at most {most}: "
                f"give it kv_tokens (--kv-tokens) of more than {count}, or shorten the prompt"
            )
        return (
            f"the prompt has {count} tokens, and this model takes at most {most}: shorten it, or give the engine "
            f"max_model_len (--max-model-len) of more than {count}"
        )

    def _text(self, request: Request, tokens: Seq[int]) -> StopChecker:
        detokenizer = IncrementalDetokenizer(self.tokenizer, tokens, request.skip_special_tokens)
        shows_stop = request.include_stop_str_in_output
        return StopChecker(detokenizer, request.stop_strings, request.min_tokens, shows_stop)

    def _template(self, request: Request, mixture: ResolvedMixture) -> PromptTemplate | None:
        """The prompt template that a request names, or else its expert's."""
        if request.template is None:
            return mixture.prompt_template
        template = self._bank.registered(request.template).prompt_template
        if template is None:
            raise ZweaveError(f"the expert {request.template!r} has no prompt template: leave it out")
        return template

    def _fallback(self, request: Request) -> ResolvedMixture | None:
        choice = request.named_fallback
        return None if choice is None else self._bank.resolve(Mixture.parse(choice))

    def _tokens(self, request: Request) -> list[int]:
        around, escape = request.add_special_tokens, request.escape_special
        if request.messages is not None:
            return self.tokenizer.chat(
                request.messages, bool(around), escape, request.tools, request.chat_template_kwargs
            )
        if isinstance(request.prompt, str):
            return self.tokenizer.encode(request.prompt, around is not False, escape)
        return list(request.prompt or ())

    @cached_property
    def _formats(self) -> FormatCompiler:
        return FormatCompiler(self.tokenizer, self._vocab_size)

    def _edits(self, request: Request, tokens: Seq[int]) -> tuple[LogitsEdit, ...]:
        edits = edits_of(request, tokens, self.tokenizer)
        form = ResponseFormat.parse(request.response_format)
        return edits if form is None else (*edits, GrammarEdit(self._formats.matcher(form)))

    def _check_ids(self, tokens: Seq[int]) -> None:
        for token in tokens:
            if not (is_integer(token) and 0 <= token < self._vocab_size):
                raise ZweaveError(
                    f"token ids must be integers from 0 to {self._vocab_size - 1}, not {shortened(token)}"
                )


def _invoked_at(mixture: ResolvedMixture, tokens: Seq[int]) -> int:
    """Position of the last occurrence of the tokens that activate a mixture; ZweaveError if there is none."""
    wanted = list(mixture.invocation_tokens)
    for start in range(len(tokens) - len(wanted), -1, -1):
        if tokens[start] == wanted[0] and list(tokens[start : start + len(wanted)]) == wanted:
            return start
    raise ZweaveError(
        f"the prompt does not hold the tokens that activate {mixture.parts[0][0].name!r}: {wanted}"
    )
