"""What a step of the engine computed, for whoever watches it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..experts.mixture import ExpertChoice
from ..scheduler.chunk import Chunk
from ..scheduler.stats import EngineStats

Phase: TypeAlias = Literal["first pass", "prompt", "decode"]


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens of a request that went through a step.

    expert: under which, the tokens before those that it acts on included; None is the base.
    start: position of the first. first_layer, last_layer: they went through [first_layer, last_layer), None for
    the last of the model.
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
        """Of a chunk that is yet to be computed."""
        sequence = chunk.sequence
        chosen = sequence.request.expert if sequence.dispatch is None else sequence.dispatch.mixture
        phase: Phase = "decode" if sequence.num_generated and chunk.count == 1 else "prompt"
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
    """start, stop: seconds of `time.perf_counter`. stats: after the step."""

    start: float
    stop: float
    spans: Sequence[Span]
    stats: EngineStats


Observer: TypeAlias = Callable[[StepTrace], None]
