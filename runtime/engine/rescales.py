"""Mixtures that are to change while requests generate."""

from collections import deque

from ..experts.resolved_mixture import ResolvedMixture
from ..scheduler.scheduler import Scheduler
from .first_pass import FirstPassManager
from .input_processor import InputProcessor
from .output_processor import OutputProcessor


class Rescales:
    """Keeps what was asked for, by any thread, until a step begins; false if there is nothing."""

    def __init__(
        self,
        input_processor: InputProcessor,
        first_passes: FirstPassManager,
        scheduler: Scheduler,
        output_processor: OutputProcessor,
    ) -> None:
        self._input_processor = input_processor
        self._first_passes = first_passes
        self._scheduler = scheduler
        self._output_processor = output_processor
        self._asked: deque[tuple[int, ResolvedMixture]] = deque()

    def __bool__(self) -> bool:
        return bool(self._asked)

    def ask(self, request_id: int, mixture: ResolvedMixture) -> None:
        """Takes note of the mixture that a request is to go on with."""
        self._asked.append((request_id, mixture))

    def apply(self) -> None:
        """Changes the mixtures, also those that a dispatcher has not chosen yet; nothing may be in flight."""
        while self._asked:
            request_id, mixture = self._asked.popleft()
            for sequence in self._output_processor.unfinished(request_id):
                self._first_passes.remove(sequence)
                tokens, kv_reuse = sequence.token_ids, sequence.request.kv_reuse
                adapted_from = self._input_processor.adapted_from(mixture, tokens, kv_reuse)
                self._scheduler.rescale(sequence, mixture, adapted_from)
