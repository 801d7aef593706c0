"""The timeline of many requests: which step computed what of each, under which expert, and what was reused.

Its file is a Chrome trace (Trace Event Format), which Perfetto (ui.perfetto.dev) and chrome://tracing show: one row for
each request, the steps, and the blocks of the cache.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..experts.mixture import ExpertChoice
from ..request import Result
from .step import Span, StepTrace

_REQUESTS, _ENGINE = 1, 2
_BLOCKS = ("blocks_in_use", "blocks_cached", "blocks_free")


def expert_text(choice: ExpertChoice) -> str:
    """An expert or mixture as the command line writes it; "base" for none."""
    if choice is None:
        return "base"
    if isinstance(choice, str):
        return choice
    return ",".join(f"{name}={_weight(alpha)}" for name, alpha in choice.items())


def _weight(alpha: Any) -> str:
    return f"{alpha:.3g}" if isinstance(alpha, int | float) else f"[{', '.join(f'{a:.3g}' for a in alpha)}]"


@dataclass(slots=True)
class Line:
    """One request.

    arrived, finished: seconds of `time.perf_counter`
    spans: (start, stop, span) of each batch that computed some of it
    """

    arrived: float
    prompt: str
    finished: float | None = None
    result: Result | None = None
    spans: list[tuple[float, float, Span]] = field(default_factory=list)


class Timeline:
    """An observer that records what an engine computes. Times are seconds of `time.perf_counter`."""

    def __init__(self) -> None:
        self.lines: dict[int, Line] = {}
        self.steps: list[StepTrace] = []

    def __call__(self, step: StepTrace) -> None:
        self.steps.append(step)
        for span in step.spans:
            if span.request_id in self.lines:
                self.lines[span.request_id].spans.append((step.start, step.stop, span))

    def arrive(self, request_id: int, seconds: float, prompt: str) -> None:
        self.lines[request_id] = Line(seconds, prompt)

    def finish(self, request_id: int, seconds: float, result: Result) -> None:
        line = self.lines[request_id]
        line.finished, line.result = seconds, result

    @property
    def start(self) -> float:
        return min(line.arrived for line in self.lines.values())

    def chrome(self) -> dict[str, Any]:
        """The trace as a JSON object; its times are microseconds since the first arrival."""
        events: list[dict[str, Any]] = [
            _named("process_name", _REQUESTS, 0, "requests"),
            _named("process_name", _ENGINE, 0, "engine"),
        ]
        for request_id, line in self.lines.items():
            events += self._request(request_id, line)
        for step in self.steps:
            events += self._step(step)
        return {"traceEvents": events, "displayTimeUnit": "ms"}

    def _at(self, seconds: float) -> float:
        return round((seconds - self.start) * 1e6, 1)

    def _request(self, request_id: int, line: Line) -> list[dict[str, Any]]:
        events = [
            _named("thread_name", _REQUESTS, request_id, f"{request_id}: {line.prompt}"),
            self._instant(request_id, line.arrived, "arrives", {}),
        ]
        for start, stop, span in line.spans:
            arguments = {
                "expert": expert_text(span.expert),
                "tokens": span.count,
                "from": span.start,
                "layers": f"{span.first_layer} to {'the last' if span.last_layer is None else span.last_layer}",
            }
            events.append(self._slice(_REQUESTS, request_id, start, stop, span.phase, arguments))
        if line.result is not None and line.finished is not None:
            events.append(self._instant(request_id, line.finished, "ends", _result_arguments(line.result)))
        return events

    def _step(self, step: StepTrace) -> list[dict[str, Any]]:
        tokens = sum(span.count for span in step.spans)
        arguments = {"requests": len({span.request_id for span in step.spans}), "tokens": tokens}
        blocks = {name.removeprefix("blocks_"): getattr(step.stats, name) for name in _BLOCKS}
        counter = {
            "name": "blocks",
            "ph": "C",
            "pid": _ENGINE,
            "tid": 0,
            "ts": self._at(step.stop),
            "args": blocks,
        }
        return [self._slice(_ENGINE, 0, step.start, step.stop, "step", arguments), counter]

    def _slice(
        self, pid: int, tid: int, start: float, stop: float, name: str, arguments: Mapping[str, Any]
    ) -> dict[str, Any]:
        begin = self._at(start)
        duration = round(self._at(stop) - begin, 1)
        return {
            "name": name,
            "ph": "X",
            "pid": pid,
            "tid": tid,
            "ts": begin,
            "dur": duration,
            "args": dict(arguments),
        }

    def _instant(
        self, request_id: int, seconds: float, name: str, arguments: Mapping[str, Any]
    ) -> dict[str, Any]:
        where = {"pid": _REQUESTS, "tid": request_id, "ts": self._at(seconds), "s": "t"}
        return {"name": name, "ph": "i", **where, "args": dict(arguments)}


def _named(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}


def _result_arguments(result: Result) -> dict[str, Any]:
    arguments = {
        "expert": expert_text(result.expert),
        "reuse": result.reuse or "none",
        "reused_tokens": result.reused_tokens,
        "resumed_tokens": result.resumed_tokens,
        "prompt_tokens": result.prompt_tokens,
        "new_tokens": len(result.token_ids),
        "finish_reason": result.finish_reason,
    }
    if result.dispatch is not None:
        arguments |= {
            "label": result.dispatch.label,
            "confidence": round(result.dispatch.confidence, 4),
            "first_pass_tokens": result.dispatch.tokens,
            "first_pass_ms": round(result.dispatch.seconds * 1e3, 2),
        }
    return arguments
