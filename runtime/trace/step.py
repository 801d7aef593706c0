"""What a step of the engine computed, for an observer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..experts.mixture import ExpertChoice
from ..scheduler.chunk import Chunk
from ..scheduler.stats import EngineStats

Phase: TypeAlias = Literal["first pass", "prompt", "decode"]


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of a request that a step computed.

    phase: "first pass" while a dispatcher chooses the expert, then "prompt", then "decode"
    expert: the request's, also for tokens before the first that it acts on; None is the base model
    start: position of the first token
    count: number of tokens
    first_layer, last_layer: the tokens went through layers [first_layer, last_layer); None for the top
    """

    request_id: int
    phase: Phase
    expert: ExpertChoice
    start: int
    count: int
    first_layer: int
    last_layer: int | None

    @classmethod
    def of(cls, chunk: Chunk, is_first_pass: bool) -> "Span":
        """The span of a chunk, when it is launched.

        is_first_pass: whether the sequence reads scores for a dispatcher
        """
        sequence = chunk.sequence
        chosen = sequence.request.named_expert if sequence.dispatch is None else sequence.dispatch.mixture
        is_generated = chunk.start >= sequence.num_prompt_tokens
        phase: Phase = "decode" if is_generated and chunk.count == 1 else "prompt"
        return cls(
            request_id=sequence.request_id,
            phase="first pass" if is_first_pass or sequence.pooling is not None else phase,
            expert=chosen if sequence.mixture.parts else None,
            start=chunk.start,
            count=chunk.count,
            first_layer=chunk.entry_layer,
            last_layer=sequence.exit_layer,
        )


@dataclass(frozen=True, slots=True)
class StepTrace:
    """One batch that the engine computed; a step may compute two.

    start, stop: seconds of `time.perf_counter`
    stats: after the batch
    """

    start: float
    stop: float
    spans: Sequence[Span]
    stats: EngineStats


Observer: TypeAlias = Callable[[StepTrace], None]
