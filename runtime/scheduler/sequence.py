"""A request on its way through the engine: its tokens, what computes them, and what the cache has of them."""

import os
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from torch import Tensor

from ..dispatcher import Dispatch
from ..experts.bank import ResolvedMixture
from ..kv_cache.kv_state import KVState
from ..kv_cache.layer_states import LayerStates
from ..request import FinishReason, Request, Result, Reuse, TokenLogprob
from ..text.detokenizer import StopChecker
from ..text.prompt_template import Question
from .logits_edit import LogitsEdit
from .pooling import Pooling


@dataclass(slots=True, eq=False)
class Sequence:
    """State of one request.

    request_id: the order of arrival, too.
    mixture: computes the tokens from `adapted_from` on; the base model computes those before, and in a first pass all.
    token_ids: prompt and generated ids.
    adapted_from: position of the first token that carries the expert's slot.
    max_length: number of tokens at which the answer is cut off.
    text: the answer's text so far.
    edits: what is done to the logits before a token is sampled, in this order.
    kv: blocks of the cache and how far they are computed.
    pooling: the first pass that reads the prompt's states; None once an expert is chosen.
    dispatch: what the dispatcher chose.
    slot: row of the bank that the sequence holds.
    logprobs: of the generated tokens, if they are asked for.
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
    num_prompt_tokens: int = field(init=False)
    kv: KVState = field(default_factory=KVState)
    pooling: Pooling | None = None
    dispatch: Dispatch | None = None
    slot: int | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    scores: list[float] | None = None
    asked: Question | None = None
    in_flight: int = 0
    num_awaited: int = 0
    ended: FinishReason | None = None
    seed: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)
        seed = self.request.sampling.seed
        self.seed = int.from_bytes(os.urandom(8), "little") if seed is None else seed

    @property
    def num_target_tokens(self) -> int:
        """Number of tokens to compute: the pooled prefix in a first pass, all tokens otherwise."""
        return len(self.token_ids) + self.num_awaited if self.pooling is None else self.pooling.stop

    @property
    def exit_layer(self) -> int | None:
        """The layer at which a first pass leaves the model; None outside one, or if it computes all layers."""
        return None if self.pooling is None else self.pooling.exit_layer

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
        """Number of tokens left to compute before the next one is sampled, or the first pass ends.

        0 if the last token is in flight, or a token that the edits of the next one's logits have to know.
        """
        if self.num_awaited and (self.edits or self.num_target_tokens >= self.max_length):
            return 0
        return self.num_target_tokens - self.next_position

    @property
    def is_prefilling(self) -> bool:
        """Whether more than the latest token is still to be computed; tokens in flight are not computed yet."""
        return self.num_target_tokens - self.num_awaited - self.landed_position > 1

    def base_until(self, layer: int) -> int:
        """Number of leading prompt tokens whose keys and values below `layer` are the base model's."""
        if self.mixture.first_layer >= layer:
            return self.num_prompt_tokens
        return min(self.adapted_from, self.num_prompt_tokens)

    def keeps_kv_valid(self, mixture: ResolvedMixture, adapted_from: int) -> bool:
        """Whether the first pass's keys and values of the prompt stay valid under `mixture`."""
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
        self.pooling = None
        self.kv.prefix_key.clear()
        partial = self.kv.partial_states
        if partial is not None:
            self.cache_states(partial.layer, partial.start, partial.states)

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
        if self.mixture.scope == "always" and self.adapted_from:
            return "approximate"
        after_prompt = self.mixture.scope == "after_prompt" and num_cached_tokens <= self.adapted_from
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

    def _after(self, token_id: int, eos_ids: Seq[int]) -> tuple[str, FinishReason | None]:
        stops = self.request.stop_token_ids or ()
        if token_id in stops or (token_id in eos_ids and not self.request.ignore_eos):
            return self.text.finish(), "stop"
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
            expert=self.request.expert if self.dispatch is None else self.dispatch.mixture,
            finish_reason=reason,
            prompt_tokens=self.num_prompt_tokens,
            error=error,
            reuse=self.reuse,
            reused_tokens=self.kv.num_cached_tokens or 0,
            resumed_tokens=self.kv.num_resumed_tokens,
            scores=self.scores,
            dispatch=self.dispatch,
            asked=None if asked is None else asked.text,
            label=None if asked is None else asked.template.label_of(self.text.shown),
        )
