"""A request on its way through the engine: its tokens, what of them is computed, and what it holds."""

import os
import sys
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from zweave.bank import BoundMixture
from zweave.pooling import Pooling
from zweave.prefix_tree import Node
from zweave.request import Dispatch, FinishReason, Request, Result, Reuse, TokenLogprob
from zweave.stop import StopText


@dataclass(slots=True, eq=False)
class Sequence:
    """State of one request.

    tokens: prompt and generated ids. computed: how many of them have their keys and values in `blocks`.
    adapted_from: position from which on the tokens carry the expert's slot, the base's before.
    nodes: those of the first blocks in the prefix tree; the blocks after them are the sequence's own.
    committed: how many tokens the tree was told of. reused: how many were found computed at the start.
    symbols: of the first tokens (`symbols.py`), written when they are needed.
    pooling: a first pass is reading the prompt's states; the mixture is the base's until it has chosen one.
    dispatch: what was chosen.
    """

    request_id: int
    request: Request
    mixture: BoundMixture
    tokens: list[int]
    adapted_from: int
    max_length: int
    text: StopText
    prompt_tokens: int = field(init=False)
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    committed: int = 0
    reused: int | None = None
    symbols: bytearray = field(default_factory=bytearray)
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

    def can_keep(self, mixture: BoundMixture, adapted_from: int) -> bool:
        """Whether what a first pass computes of the prompt is what another mixture computes, too."""
        if self.pooling is not None and self.pooling.ends:
            return False
        if self.target == len(self.tokens):  # the last token's logits are wanted yet
            return False
        return not mixture.parts or self.target <= adapted_from

    def bind(self, mixture: BoundMixture, adapted_from: int) -> None:
        """Sets the mixture that a first pass has chosen."""
        if not self.can_keep(mixture, adapted_from):
            self.reused = None
        self.mixture, self.adapted_from = mixture, adapted_from
        self.pooling = None
        self.symbols.clear()

    @property
    def generated(self) -> list[int]:
        return self.tokens[self.prompt_tokens :]

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def reuse(self) -> Reuse | None:
        """The kind of reuse that `reused` tokens are of."""
        if not self.reused:
            return None
        after_prompt = self.mixture.scope == "after_prompt" and self.reused <= self.adapted_from
        return "after_prompt" if after_prompt else "same_mixture"

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
            scores=self.scores,
            dispatch=self.dispatch,
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next `count` uncomputed tokens of a sequence; the step samples if they reach its end.

    In a batch those that end at a layer come last, the highest layer first (`depth_order`).
    """

    sequence: Sequence
    count: int

    @property
    def complete(self) -> bool:
        sequence = self.sequence
        return sequence.pooling is None and sequence.computed + self.count == len(sequence.tokens)

    @property
    def depth_order(self) -> int:
        pooling = self.sequence.pooling
        return -pooling.layer if pooling is not None and pooling.ends else -sys.maxsize
