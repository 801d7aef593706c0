"""A request on its way through the engine: its tokens, what computes them, and what the cache has of them."""

import os
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from torch import Tensor

from ..dispatcher import Dispatch
from ..experts.resolved_mixture import ResolvedMixture
from ..kv_cache.kv_state import KVState
from ..kv_cache.layer_states import LayerStates
from ..kv_cache.prefix_key import KEY_BYTES
from ..request import FinishReason, Request, Result, Reuse, TokenLogprob
from ..text.detokenizer import StopChecker
from ..text.prompt_template import Question
from .choice import Choice
from .logits_edit import LogitsEdit
from .pooling import Pooling


@dataclass(slots=True, eq=False)
class Sequence:
    """State of one answer to a request.

    request_id: the order of arrival, too; the answers to one request have the same.
    sample: which of them.
    mixture: computes the tokens from `adapted_from` on; the base model computes those before, and in a first pass all.
    earlier: the mixtures before that one, if it was changed in the answer: each with the position that it ends before.
    token_ids: prompt and generated ids.
    adapted_from: position of the first token that carries the expert's slot.
    max_length: number of tokens at which the answer is cut off.
    text: the answer's text so far.
    edits: what is done to the logits before a token is sampled, in this order.
    kv: blocks of the cache and how far they are computed.
    pooling: the first pass that reads the prompt's states; None once an expert is chosen.
    choice: of an expert that the device makes meanwhile; None once it has landed. `mixture` is the base until then.
    fallback: what computes the answer if the dispatcher chooses the base model, where that is said.
    dispatch: what the dispatcher chose.
    slot: row of the bank that the sequence holds, or the place of one that is being chosen.
    logprobs: of the generated tokens, if they are asked for.
    prompt_logprobs: of the prompt's first tokens, as far as they are known, if they are asked for; None for the first.
    scores: log-probabilities of the request's `score` tokens.
    seed: of the sampler.
    asked: the prompt in the words of a template, if it was put into them.
    in_flight: tokens whose step is launched and has not landed.
    num_awaited: tokens that launched steps sample: they follow those of `token_ids`, and are not known yet.
    ended: why the answer ends with the last of `token_ids`, until the request's result is made.
    """

    request_id: int
    request: Request
    mixture: ResolvedMixture
    token_ids: list[int]
    adapted_from: int
    max_length: int
    text: StopChecker
    edits: tuple[LogitsEdit, ...] = ()
    sample: int = 0
    earlier: list[tuple[int, ResolvedMixture]] = field(default_factory=list)
    num_prompt_tokens: int = field(init=False)
    kv: KVState = field(default_factory=KVState)
    pooling: Pooling | None = None
    choice: Choice | None = None
    fallback: ResolvedMixture | None = None
    dispatch: Dispatch | None = None
    slot: int | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] = field(init=False)
    scores: list[float] | None = None
    asked: Question | None = None
    in_flight: int = 0
    num_awaited: int = 0
    ended: FinishReason | None = None
    seed: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)
        self.prompt_logprobs = [] if self.request.prompt_logprobs is None or self.sample else [None]
        seed = self.request.sampling.seed
        self.seed = int.from_bytes(os.urandom(8), "little") if seed is None else (seed + self.sample) % 2**64

    @property
    def num_target_tokens(self) -> int:
        """Number of tokens to compute: the pooled prefix in a first pass, all tokens otherwise."""
        return len(self.token_ids) + self.num_awaited if self.pooling is None else self.pooling.stop

    @property
    def read_states(self) -> Pooling | None:
        """What a first pass reads of the prompt, whether the host or the device chooses by it."""
        return self.pooling if self.choice is None else self.choice.pooling

    @property
    def num_lookup_tokens(self) -> int:
        """Number of tokens whose beginning may be found in the prefix cache: all but the last of them."""
        return self.num_target_tokens if self.choice is None else self.choice.pooling.stop

    @property
    def token_ids_with_mixture(self) -> list[int]:
        """The tokens of which it is known what computes them."""
        return self.token_ids if self.choice is None else self.token_ids[: self.adapted_from]

    @property
    def exit_layer(self) -> int | None:
        """The layer at which a first pass leaves the model; None outside one, or if it computes all layers."""
        return None if self.pooling is None else self.pooling.exit_layer

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether the next tokens are to give log-probabilities of the prompt: not in a first pass."""
        return self.pooling is None and 0 < len(self.prompt_logprobs) < self.num_prompt_tokens

    @property
    def landed_position(self) -> int:
        """Position after the last token whose step has landed."""
        if self.exit_layer is not None and self.kv.partial_states is not None:
            return self.kv.partial_states.stop
        return self.kv.num_computed_tokens

    @property
    def next_position(self) -> int:
        """Position of the next token to compute."""
        return self.landed_position + self.in_flight

    @property
    def num_pending_tokens(self) -> int:
        """Number of tokens left to compute before the next one is sampled, the first pass ends, or the mixture changes.

        0 if the last token is in flight, or a token that the edits of the next one's logits have to know.
        """
        if self.num_awaited and (self.edits or self.num_target_tokens >= self.max_length):
            return 0
        position, stop = self.next_position, self.num_target_tokens
        if self.earlier:
            stop = next((stop for stop, _ in self.earlier if position < stop), stop)
        return stop - position

    @property
    def is_prefilling(self) -> bool:
        """Whether more than the latest token is still to be computed; tokens in flight are not computed yet."""
        return self.num_target_tokens - self.num_awaited - self.landed_position > 1

    @property
    def spans(self) -> list[tuple[int, ResolvedMixture]]:
        """All mixtures in order, each with the position that it ends before."""
        return [*self.earlier, (self.max_length, self.mixture)]

    def mixture_at(self, position: int) -> ResolvedMixture:
        """The mixture that computes the token at a position, unless the base model does."""
        return next((mixture for stop, mixture in self.earlier if position < stop), self.mixture)

    def rescale(self, mixture: ResolvedMixture) -> None:
        """Changes the mixture from the latest token on, which must be generated and not computed yet."""
        position = len(self.token_ids) - 1
        if not self.earlier or self.earlier[-1][0] < position:
            self.earlier.append((position, self.mixture))
        self.mixture = mixture
        del self.kv.prefix_key[position * KEY_BYTES :]

    def base_until(self, layer: int) -> int:
        """Number of leading prompt tokens whose keys and values below `layer` are the base model's."""
        if min(mixture.first_layer for _, mixture in self.spans) >= layer:
            return self.num_prompt_tokens
        return min(self.adapted_from, self.num_prompt_tokens)

    def keeps_kv_valid(self, mixture: ResolvedMixture, adapted_from: int) -> bool:
        """Whether the first pass's keys and values of the prompt stay valid under `mixture`, and suffice."""
        if self.request.prompt_logprobs is not None:
            return False
        is_base = not mixture.parts or self.num_target_tokens <= adapted_from
        if self.exit_layer is not None:
            # Tokens that were found computed in all layers are the base model's there.
            return is_base or (mixture.first_layer >= self.exit_layer and not self.kv.num_computed_tokens)
        # The last token has to be computed still, for its logits.
        return is_base and self.num_target_tokens < len(self.token_ids)

    def take_prompt(self, other: "Sequence") -> None:
        """Replaces the prompt, of which the cache is to hold nothing for this sequence, by that of another one."""
        self.request, self.asked, self.text = other.request, other.asked, other.text
        self.edits = other.edits
        self.token_ids, self.num_prompt_tokens = other.token_ids, other.num_prompt_tokens
        self.adapted_from, self.max_length = other.adapted_from, other.max_length
        self.kv, self.pooling = KVState(), None

    def bind(self, mixture: ResolvedMixture, adapted_from: int) -> None:
        """Ends the first pass: sets the mixture that was chosen."""
        if not self.keeps_kv_valid(mixture, adapted_from):
            self.kv.num_cached_tokens, self.kv.num_resumed_tokens = None, 0
        self.mixture, self.adapted_from = mixture, adapted_from
        self.pooling = self.choice = None
        self.prompt_logprobs = self.prompt_logprobs[:1]
        self.kv.prefix_key.clear()
        partial = self.kv.partial_states
        if partial is not None:
            self.cache_states(partial.layer, partial.start, partial.states)

    def settle(self, mixture: ResolvedMixture, adapted_from: int, slot: int) -> None:
        """Ends the choice in flight: the device has computed the tokens from its end on under `mixture`, in `slot`."""
        self.mixture, self.adapted_from, self.slot = mixture, adapted_from, slot
        self.choice = None

    def choose_on_host(self) -> None:
        """Turns a choice that is not in flight yet into an ordinary first pass."""
        assert self.choice is not None
        self.pooling, self.choice, self.adapted_from = self.choice.pooling, None, 0

    def launch(self, count: int, samples: bool) -> None:
        """Marks the next tokens as in flight. samples: whether a token is sampled after them."""
        self.in_flight += count
        self.num_awaited += samples

    def withdraw(self, count: int, samples: bool) -> None:
        """Takes `launch` back."""
        self.in_flight -= count
        self.num_awaited -= samples

    def land(self, count: int, samples: bool, states: Tensor | None = None) -> None:
        """Marks tokens in flight as computed: in all layers, or below the exit layer, which `states` enter."""
        self.withdraw(count, samples)
        if states is None:
            self.advance(count)
        else:
            self.advance_below(states)

    def advance(self, count: int) -> None:
        """Marks the next tokens as computed in all layers."""
        self.kv.advance(count)

    def advance_below(self, states: Tensor) -> None:
        """Marks the next tokens as computed below the exit layer, which `states` enter."""
        assert self.exit_layer is not None
        self.kv.advance_below(self.exit_layer, states)

    def cache_states(self, layer: int, start: int, states: Tensor) -> None:
        """Keeps states that enter `layer`, of the tokens from `start` on, for the prefix cache: the base model's."""
        num_base = max(0, self.base_until(layer) - start)
        self.kv.cache_states(LayerStates(layer, start, states[:num_base]))

    @property
    def generated(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def reuse(self) -> Reuse | None:
        """What kind of reuse the cached and resumed tokens are."""
        if self.kv.num_resumed_tokens:
            return "first_layer"
        num_cached_tokens = self.kv.num_cached_tokens
        if not num_cached_tokens:
            return None
        scope = self.mixture_at(0).scope
        if scope == "always" and self.adapted_from:
            return "approximate"
        after_prompt = scope == "after_prompt" and num_cached_tokens <= self.adapted_from
        return "after_prompt" if after_prompt else "same_mixture"

    def append(
        self, token_id: int, entry: TokenLogprob | None, eos_ids: Seq[int]
    ) -> tuple[str, FinishReason | None]:
        """Adds a generated token; returns the text that can be shown now, and the finish reason if the answer ends."""
        self.token_ids.append(token_id)
        if entry is not None:
            self.logprobs.append(entry)
        text, self.ended = self._after(token_id, eos_ids)
        return text, self.ended

    def add_prompt_logprobs(self, position: int, entries: Seq[TokenLogprob]) -> None:
        """Adds log-probabilities of the prompt's tokens from a position on; those that are known stay."""
        self.prompt_logprobs += entries[len(self.prompt_logprobs) - position :]

    def _after(self, token_id: int, eos_ids: Seq[int]) -> tuple[str, FinishReason | None]:
        stops = self.request.stop_token_ids or ()
        if token_id in stops or (token_id in eos_ids and not self.request.ignore_eos):
            shown = self.text.add(token_id)[0] if self.request.include_stop_str_in_output else ""
            return shown + self.text.finish(), "stop"
        new_text, stopped = self.text.add(token_id)
        if stopped:
            return new_text, "stop"
        if len(self.token_ids) >= self.max_length:
            return new_text + self.text.finish(), "length"
        return new_text, None

    def result(self, reason: FinishReason, error: str | None = None) -> Result:
        asked = self.asked
        if reason == "length" and asked is not None and asked.template.is_answered_by(self.text.shown):
            reason = "stop"
        return Result(
            text=self.text.shown,
            token_ids=self.generated,
            logprobs=self.logprobs if self.request.logprobs is not None else None,
            expert=self.request.named_expert if self.dispatch is None else self.dispatch.mixture,
            finish_reason=reason,
            prompt_tokens=self.num_prompt_tokens,
            error=error,
            reuse=self.reuse,
            reused_tokens=self.kv.num_cached_tokens or 0,
            resumed_tokens=self.kv.num_resumed_tokens,
            prompt_logprobs=self.prompt_logprobs or None,
            prompt_token_ids=self.token_ids[: self.num_prompt_tokens] if self.prompt_logprobs else None,
            scores=self.scores,
            dispatch=self.dispatch,
            asked=None if asked is None else asked.text,
            label=None if asked is None else asked.template.label_of(self.text.shown),
        )
