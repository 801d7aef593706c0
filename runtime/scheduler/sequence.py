"""A request on its way through the engine: its tokens, what of them is computed, and what it holds."""

import os
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from torch import Tensor

from ..dispatcher import Dispatch
from ..experts.bank import ResolvedMixture
from ..kv_cache.layer_states import LayerStates
from ..kv_cache.prefix_tree import Node
from ..request import FinishReason, Request, Result, Reuse, TokenLogprob
from ..text.detokenizer import StopChecker
from .pooling import Pooling


@dataclass(slots=True, eq=False)
class Sequence:
    """State of one request.

    token_ids: prompt and generated ids.
    adapted_from: position from which on the tokens carry the expert's slot, the base's before.
    num_computed_tokens: how many tokens have their keys and values in the blocks of `block_table`.
    nodes: the first blocks as nodes of the prefix tree; the blocks after them are private to the sequence.
    num_indexed_tokens: how many computed tokens the prefix tree has been told of.
    num_cached_tokens: how many tokens were found in the prefix cache at the start; None before that.
    symbols: of the first tokens (`prefix_key.py`), written when they are needed.
    partial_states: tokens that are computed below some layer, with the states that enter it: they resume there.
    num_resumed_tokens: how many tokens were found partially computed at the start.
    cached_states: states of tokens that the prefix tree has not been given yet, by the layer that they enter.
    pooling: the first pass that reads the prompt's states; until it ends the mixture is the base model's.
    dispatch: what the dispatcher chose.
    """

    request_id: int
    request: Request
    mixture: ResolvedMixture
    token_ids: list[int]
    adapted_from: int
    max_length: int
    text: StopChecker
    num_prompt_tokens: int = field(init=False)
    num_computed_tokens: int = 0
    block_table: list[int] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    num_indexed_tokens: int = 0
    num_cached_tokens: int | None = None
    symbols: bytearray = field(default_factory=bytearray)
    partial_states: LayerStates | None = None
    num_resumed_tokens: int = 0
    cached_states: dict[int, LayerStates] = field(default_factory=dict)
    pooling: Pooling | None = None
    dispatch: Dispatch | None = None
    slot: int | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    scores: list[float] | None = None
    seed: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)
        seed = self.request.sampling.seed
        self.seed = int.from_bytes(os.urandom(8), "little") if seed is None else seed

    @property
    def num_target_tokens(self) -> int:
        """Number of tokens to compute: the pooled prefix in a first pass, all tokens otherwise."""
        return len(self.token_ids) if self.pooling is None else self.pooling.stop

    @property
    def exit_layer(self) -> int | None:
        """The layer at which a first pass leaves the model; None outside one, or if it computes all layers."""
        return None if self.pooling is None else self.pooling.exit_layer

    @property
    def next_position(self) -> int:
        """Position of the next token to compute."""
        return (
            self.partial_states.stop
            if self.exit_layer is not None and self.partial_states is not None
            else self.num_computed_tokens
        )

    def base_until(self, layer: int) -> int:
        """How many of the prompt's tokens are the base's in the layers below this one."""
        is_base_there = self.mixture.first_layer >= layer
        return self.num_prompt_tokens if is_base_there else min(self.adapted_from, self.num_prompt_tokens)

    def keeps_kv_valid(self, mixture: ResolvedMixture, adapted_from: int) -> bool:
        """Whether the first pass's keys and values of the prompt stay valid under `mixture`."""
        is_base = not mixture.parts or self.num_target_tokens <= adapted_from
        if self.exit_layer is not None:
            # What was found whole is the base's in all layers.
            return is_base or (mixture.first_layer >= self.exit_layer and not self.num_computed_tokens)
        # The last token's logits are wanted yet.
        return is_base and self.num_target_tokens < len(self.token_ids)

    def bind(self, mixture: ResolvedMixture, adapted_from: int) -> None:
        """Sets the mixture that a first pass has chosen."""
        if not self.keeps_kv_valid(mixture, adapted_from):
            self.num_cached_tokens, self.num_resumed_tokens = None, 0
        self.mixture, self.adapted_from = mixture, adapted_from
        self.pooling = None
        self.symbols.clear()
        if self.partial_states is not None:
            self.cache_states(
                self.partial_states.layer, self.partial_states.start, self.partial_states.states
            )

    @property
    def generated(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def reuse(self) -> Reuse | None:
        """The kind of reuse behind `num_cached_tokens` and `num_resumed_tokens`."""
        if self.num_resumed_tokens:
            return "first_layer"
        if not self.num_cached_tokens:
            return None
        if self.mixture.scope == "always" and self.adapted_from:
            return "approximate"
        after_prompt = self.mixture.scope == "after_prompt" and self.num_cached_tokens <= self.adapted_from
        return "after_prompt" if after_prompt else "same_mixture"

    def advance(self, count: int) -> None:
        """Marks tokens as computed."""
        self.num_computed_tokens += count
        if self.partial_states is not None and self.num_computed_tokens >= self.partial_states.stop:
            self.partial_states = None

    def advance_below(self, states: Tensor) -> None:
        """Marks the tokens whose states these are as computed up to the layer at which the first pass ends."""
        assert self.exit_layer is not None
        known = self.partial_states
        self.partial_states = (
            LayerStates(self.exit_layer, self.num_computed_tokens, states)
            if known is None
            else known.then(states)
        )

    def cache_states(self, layer: int, start: int, states: Tensor) -> None:
        """Keeps the states of the tokens from `start` on, as far as they are the base's."""
        found = LayerStates(layer, start, states[: max(0, self.base_until(layer) - start)])
        known = self.cached_states.get(layer)
        if known is not None and known.stop == start:
            found = known.then(found.states)
        elif known is not None and known.start == found.stop:
            found = found.then(known.states)
        self.cached_states[layer] = found

    def append(
        self, token_id: int, entry: TokenLogprob | None, eos_ids: Seq[int]
    ) -> tuple[str, FinishReason | None]:
        """Adds a generated token; returns the text that may be shown now, and why it ends, if it does."""
        self.token_ids.append(token_id)
        if entry is not None:
            self.logprobs.append(entry)
        if token_id in eos_ids and not self.request.ignore_eos:
            return self.text.finish(), "stop"
        new_text, stopped = self.text.add(token_id)
        if stopped:
            return new_text, "stop"
        if len(self.token_ids) >= self.max_length:
            return new_text + self.text.finish(), "length"
        return new_text, None

    def result(self, reason: FinishReason, error: str | None = None) -> Result:
        return Result(
            text=self.text.shown,
            token_ids=self.generated,
            logprobs=self.logprobs if self.request.logprobs is not None else None,
            expert=self.request.expert if self.dispatch is None else self.dispatch.mixture,
            finish_reason=reason,
            prompt_tokens=self.num_prompt_tokens,
            error=error,
            reuse=self.reuse,
            reused_tokens=self.num_cached_tokens or 0,
            resumed_tokens=self.num_resumed_tokens,
            scores=self.scores,
            dispatch=self.dispatch,
        )
