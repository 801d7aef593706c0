"""How long the host works for a step, and how long it waits for the device."""

import statistics
import time
from collections.abc import Sequence

from zweave.engine import Engine
from zweave.request import Delta, Request

from ..fixtures import Answers


class StepTimes:
    """Where the time of an engine's run goes, by what the engine counts.

    A step of the host launches, waits for what the step before has computed, and takes it in.

    decode_steps: seconds of each step that launched nothing but decoding.
    decode_host: seconds that the host worked in each of these.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._before = engine.stats()
        self._start = time.perf_counter()
        self.decode_steps: list[float] = []
        self.decode_host: list[float] = []

    def answers(self, requests: Sequence[Request]) -> Answers:
        """The token ids of the requests' answers."""
        ids = [self._engine.add(request) for request in requests]
        answers = {}
        while self._engine.has_work:
            for delta in self._timed_step():
                if delta.result is not None:
                    answers[delta.request_id] = delta.result.token_ids
        return [answers[request_id] for request_id in ids]

    def _timed_step(self) -> list[Delta]:
        before, start = self._engine.stats(), time.perf_counter()
        deltas = self._engine.step()
        seconds, after = time.perf_counter() - start, self._engine.stats()
        if after.steps - before.steps == after.decode_steps - before.decode_steps == 1:
            self.decode_steps.append(seconds)
            self.decode_host.append(seconds - (after.wait_seconds - before.wait_seconds))
        return deltas

    def row(self) -> dict[str, float | None]:
        """Keys of a row: host_seconds and step_seconds of a decoding step, waiting as a share of all seconds."""
        stats = self._engine.stats()
        waited = stats.wait_seconds - self._before.wait_seconds
        return {
            "steps": stats.steps - self._before.steps,
            "step_seconds": statistics.median(self.decode_steps) if self.decode_steps else None,
            "host_seconds": statistics.median(self.decode_host) if self.decode_host else None,
            "waiting": waited / (time.perf_counter() - self._start),
        }
