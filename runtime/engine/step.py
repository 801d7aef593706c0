"""A step of the engine: the chunks that a runner is given, and what it computes for them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..kv_cache.block_pool import KVCache
from ..model.gpu_model import GpuModel
from ..model.layer_schedule import StateCapture
from ..model.model import Model
from ..request import TokenLogprob
from ..scheduler.chunk import Chunk


@dataclass(frozen=True, slots=True)
class SampledToken:
    """The next token of a sequence.

    is_finite: whether all its logits are finite, and not all the same, and edits left one that is; if not, the token
        means nothing
    logprob: if the request asks for log-probabilities
    scores: log-probabilities of the request's `score` tokens, with its first token
    """

    token_id: int
    is_finite: bool
    logprob: TokenLogprob | None = None
    scores: list[float] | None = None


@dataclass(frozen=True, slots=True)
class ChosenSlot:
    """What a device has chosen for a sequence.

    slot: of the chosen expert, 0 for the base model
    probabilities: of the classifier's labels
    """

    slot: int
    probabilities: list[float]


@dataclass(frozen=True, slots=True)
class ChunkOutput:
    """What was computed for a chunk.

    sampled: None unless the chunk is complete, i.e. reaches the end of its sequence
    states: [tokens, hidden] float32 for each layer whose input states the chunk asks for
    prompt_logprobs: of the chunk's `prompt_targets`
    pooled: [hidden] float64, on the host, the sum of those that a first pass pools; None if they are to be added here
    chosen: if the device has chosen the sequence's expert by them
    """

    chunk: Chunk
    sampled: SampledToken | None
    states: Mapping[int, Tensor]
    pooled: Tensor | None = None
    chosen: ChosenSlot | None = None
    prompt_logprobs: Seq[TokenLogprob] = ()


def _no_wait() -> None:
    """Of a step that was computed when it was launched."""


@dataclass(slots=True, eq=False)
class LaunchedStep:
    """A step that a runner was given, and that may still run on a device.

    chunks: in the order of the batch
    output_of: the output of the chunk of an index, once it is there
    wait: returns when the outputs are there
    num_taken: outputs that were taken in
    """

    chunks: Seq[Chunk]
    output_of: Callable[[int], ChunkOutput]
    wait: Callable[[], object] = _no_wait
    num_taken: int = 0

    def outputs(self) -> Iterator[ChunkOutput]:
        """The outputs. One is taken when the next is asked for: after an interruption a second call goes on with it."""
        while self.num_taken < len(self.chunks):
            yield self.output_of(self.num_taken)
            self.num_taken += 1


class Runner(Protocol):
    """What computes steps.

    model: what it runs
    cache: where keys and values go
    max_length: tokens that a sequence may have
    lookahead: steps that may be in flight when the next one is launched
    """

    cache: KVCache
    max_length: int
    lookahead: int

    @property
    def model(self) -> Model | GpuModel: ...

    def launch(self, chunks: Iterable[Chunk]) -> LaunchedStep:
        """Computes chunks as one batch, in an order of its own; may return before that is done."""

    def states(self, chunks: Seq[Chunk], layers: Seq[int]) -> Mapping[StateCapture, Tensor]:
        """The states of chunks, in their slots, as they enter some layers; nothing above the highest is computed.

        Returns [tokens, hidden] float32 for the rows of each chunk and each layer.
        """
