"""How long the host works for a step, and how long it waits for the device."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Seq

from torch import Tensor

from zweave.engine.step import ChunkOutput, LaunchedStep, Runner
from zweave.kv_cache.block_pool import KVCache
from zweave.model.gpu_model import GpuModel
from zweave.model.layer_schedule import StateCapture
from zweave.model.model import Model
from zweave.scheduler.chunk import Chunk


class TimedRunner:
    """A runner, and a clock around it.

    A step of the host lasts from a launch to the next: it launches, takes in what the step before has computed, and
    schedules. What it waits for is the first output of the step before.

    waited: seconds
    steps: launched
    decode_host: seconds that the host worked, of each step that only decoded
    decode_steps: seconds of each of these with the waiting
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.cache: KVCache = runner.cache
        self.max_length = runner.max_length
        self.lookahead = runner.lookahead
        self.reset()

    def reset(self) -> None:
        self.waited = 0.0
        self.steps = 0
        self.decode_host: list[float] = []
        self.decode_steps: list[float] = []
        self._last: tuple[float, float] | None = None

    @property
    def model(self) -> Model | GpuModel:
        return self._runner.model

    def launch(self, chunks: Iterable[Chunk]) -> LaunchedStep:
        """See `Runner`."""
        listed = list(chunks)
        now = time.perf_counter()
        if self._last is not None:
            start, waited = self._last
            self.decode_steps.append(now - start)
            self.decode_host.append(now - start - (self.waited - waited))
        decodes = all(chunk.count == 1 for chunk in listed)
        self._last = (now, self.waited) if decodes else None
        self.steps += 1
        step = self._runner.launch(listed)
        return LaunchedStep(step.chunks, self._timed(step.output_of))

    def states(self, chunks: Seq[Chunk], layers: Seq[int]) -> Mapping[StateCapture, Tensor]:
        """See `Runner`."""
        return self._runner.states(chunks, layers)

    def times(self, seconds: float) -> dict[str, float | None]:
        """Keys of a row: host_seconds and step_seconds of a decoding step, waiting as a share of all seconds."""
        return {
            "steps": self.steps,
            "step_seconds": statistics.median(self.decode_steps) if self.decode_steps else None,
            "host_seconds": statistics.median(self.decode_host) if self.decode_host else None,
            "waiting": self.waited / seconds,
        }

    def _timed(self, output_of: Callable[[int], ChunkOutput]) -> Callable[[int], ChunkOutput]:
        def timed(index: int) -> ChunkOutput:
            start = time.perf_counter()
            output = output_of(index)
            if index == 0:
                self.waited += time.perf_counter() - start
            return output

        return timed
