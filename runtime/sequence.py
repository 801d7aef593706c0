"""A request on its way through the engine: its tokens, what of them is computed, and what it holds."""

import os
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from zweave.bank import BoundMixture
from zweave.prefix_tree import Node
from zweave.request import FinishReason, Request, Result, Reuse, TokenLogprob
from zweave.stop import StopText


@dataclass(slots=True, eq=False)
class Sequence:
    """State of one request.

    tokens: prompt and generated ids. computed: how many of them have their keys and values in `blocks`.
    adapted_from: position from which on the tokens carry the expert's slot, the base's before.
    nodes: those of the first blocks in the prefix tree; the blocks after them are the sequence's own.
    committed: how many tokens the tree was told of. reused: how many were found computed at the start.
    symbols: of the first tokens (`symbols.py`), written when they are needed.
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
    slot: int | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    scores: list[float] | None = None
    seed: int = field(init=False)

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.tokens)
        seed = self.request.sampling.seed
        self.seed = int.from_bytes(os.urandom(8), "little") if seed is None else seed

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
            expert=self.request.expert,
            finish_reason=reason,
            prompt_tokens=self.prompt_tokens,
            error=error,
            reuse=self.reuse,
            reused_tokens=self.reused or 0,
            scores=self.scores,
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next `count` uncomputed tokens of a sequence; the step samples if they reach its end."""

    sequence: Sequence
    count: int

    @property
    def complete(self) -> bool:
        return self.sequence.computed + self.count == len(self.sequence.tokens)
