"""A request on its way through the engine: its tokens, what of them is computed, and what it holds."""

import os
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from torch import Tensor

from ..dispatcher import Dispatch
from ..experts.bank import BoundMixture
from ..kv_cache.layer_states import LayerStates
from ..kv_cache.prefix_tree import Node
from ..request import FinishReason, Request, Result, Reuse, TokenLogprob
from ..text.detokenizer import StopChecker
from .pooling import Pooling


@dataclass(slots=True, eq=False)
class Sequence:
    """State of one request.

    tokens: prompt and generated ids. computed: how many of them have their keys and values in `blocks`.
    adapted_from: position from which on the tokens carry the expert's slot, the base's before.
    nodes: those of the first blocks in the prefix tree; the blocks after them are the sequence's own.
    committed: how many tokens the tree was told of. reused: how many were found computed at the start.
    symbols: of the first tokens (`symbols.py`), written when they are needed.
    below: tokens that are computed in the layers below some layer, with the states that enter it: they are computed
        from there on. resumed: how many were found so at the start.
    kept: states of tokens that the tree has not been given yet.
    pooling: a first pass is reading the prompt's states; the mixture is the base's until it has chosen one.
    dispatch: what was chosen.
    """

    request_id: int
    request: Request
    mixture: BoundMixture
    tokens: list[int]
    adapted_from: int
    max_length: int
    text: StopChecker
    prompt_tokens: int = field(init=False)
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    committed: int = 0
    reused: int | None = None
    symbols: bytearray = field(default_factory=bytearray)
    below: LayerStates | None = None
    resumed: int = 0
    kept: dict[int, LayerStates] = field(default_factory=dict)
    pooling: Pooling | None = None
    dispatch: Dispatch | None = None
    slot: int | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    scores: list[float] | None = None
    seed: int = field(init=False)

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.tokens)
        seed = self.request.sampling.seed
        self.seed = int.from_bytes(os.urandom(8), "little") if seed is None else seed

    @property
    def target(self) -> int:
        """How many tokens are to be computed, as far as is known now."""
        return len(self.tokens) if self.pooling is None else self.pooling.stop

    @property
    def ends_at(self) -> int | None:
        """The layer at which a first pass stops, None if it does not or there is none."""
        return None if self.pooling is None else self.pooling.ends

    @property
    def position(self) -> int:
        """Of the first token to go through the next step."""
        return self.below.stop if self.ends_at is not None and self.below is not None else self.computed

    def base_until(self, layer: int) -> int:
        """How many of the prompt's tokens are the base's in the layers below this one."""
        is_base_there = self.mixture.first_layer >= layer
        return self.prompt_tokens if is_base_there else min(self.adapted_from, self.prompt_tokens)

    def can_keep(self, mixture: BoundMixture, adapted_from: int) -> bool:
        """Whether what a first pass computes of the prompt is what another mixture computes, too."""
        is_base = not mixture.parts or self.target <= adapted_from
        if self.ends_at is not None:
            # What was found whole is the base's in all layers.
            return is_base or (mixture.first_layer >= self.ends_at and not self.computed)
        # The last token's logits are wanted yet.
        return is_base and self.target < len(self.tokens)

    def bind(self, mixture: BoundMixture, adapted_from: int) -> None:
        """Sets the mixture that a first pass has chosen."""
        if not self.can_keep(mixture, adapted_from):
            self.reused, self.resumed = None, 0
        self.mixture, self.adapted_from = mixture, adapted_from
        self.pooling = None
        self.symbols.clear()
        if self.below is not None:
            self.keep(self.below.layer, self.below.start, self.below.states)

    @property
    def generated(self) -> list[int]:
        return self.tokens[self.prompt_tokens :]

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def reuse(self) -> Reuse | None:
        """The kind of reuse that `reused` and `resumed` tokens are of."""
        if self.resumed:
            return "first_layer"
        if not self.reused:
            return None
        if self.mixture.scope == "always" and self.adapted_from:
            return "approximate"
        after_prompt = self.mixture.scope == "after_prompt" and self.reused <= self.adapted_from
        return "after_prompt" if after_prompt else "same_mixture"

    def advance(self, count: int) -> None:
        """Marks tokens as computed."""
        self.computed += count
        if self.below is not None and self.computed >= self.below.stop:
            self.below = None

    def advance_below(self, states: Tensor) -> None:
        """Marks the tokens whose states these are as computed up to the layer at which the first pass ends."""
        assert self.ends_at is not None
        known = self.below
        self.below = LayerStates(self.ends_at, self.computed, states) if known is None else known.then(states)

    def keep(self, layer: int, start: int, states: Tensor) -> None:
        """Keeps the states of the tokens from `start` on, as far as they are the base's."""
        found = LayerStates(layer, start, states[: max(0, self.base_until(layer) - start)])
        known = self.kept.get(layer)
        if known is not None and known.stop == start:
            found = known.then(found.states)
        elif known is not None and known.start == found.stop:
            found = found.then(known.states)
        self.kept[layer] = found

    def append(
        self, token_id: int, entry: TokenLogprob | None, eos_ids: Seq[int]
    ) -> tuple[str, FinishReason | None]:
        """Adds a generated token; returns the text that may be shown now, and why it ends, if it does."""
        self.tokens.append(token_id)
        if entry is not None:
            self.logprobs.append(entry)
        if token_id in eos_ids and not self.request.ignore_eos:
            return self.text.finish(), "stop"
        new_text, stopped = self.text.add(token_id)
        if stopped:
            return new_text, "stop"
        if len(self.tokens) >= self.max_length:
            return new_text + self.text.finish(), "length"
        return new_text, None

    def result(self, reason: FinishReason, error: str | None = None) -> Result:
        return Result(
            text=self.text.shown,
            token_ids=self.generated,
            logprobs=self.logprobs if self.request.logprobs is not None else None,
            expert=self.request.expert if self.dispatch is None else self.dispatch.mixture,
            finish_reason=reason,
            prompt_tokens=self.prompt_tokens,
            error=error,
            reuse=self.reuse,
            reused_tokens=self.reused or 0,
            resumed_tokens=self.resumed,
            scores=self.scores,
            dispatch=self.dispatch,
        )
