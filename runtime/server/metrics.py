"""What /metrics tells Prometheus."""

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from ..engine.engine import Engine
from ..request import Result
from .answers.admission import Admission

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 150, 600)


class Metrics:
    """Counts requests, tokens and seconds; asks the engine for the rest when it is asked itself."""

    def __init__(self, engine: Engine, admission: Admission) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(engine, admission))
        self._requests = Counter(
            "zweave_requests", "Answered requests.", ("finish_reason", "kind"), registry=self.registry
        )
        self._prompt_tokens = Counter("zweave_prompt_tokens", "Tokens of prompts.", registry=self.registry)
        self._generated_tokens = Counter(
            "zweave_generated_tokens", "Generated tokens.", registry=self.registry
        )
        self._reused_tokens = Counter(
            "zweave_reused_tokens",
            "Tokens of prompts whose keys and values were cached.",
            registry=self.registry,
        )
        self._first_token = self._histogram("time_to_first_token", "From the request to its first token.")
        self._between_tokens = self._histogram("inter_token_latency", "From a token to the next.")
        self._whole = self._histogram("request_latency", "From the request to the end of its answer.")

    def _histogram(self, name: str, what: str) -> Histogram:
        return Histogram(f"zweave_{name}_seconds", what, buckets=_SECONDS, registry=self.registry)

    def on_tokens(self, seconds: float, first: bool) -> None:
        """A step gave a request tokens, so many seconds after it came or after those before."""
        (self._first_token if first else self._between_tokens).observe(seconds)

    def on_result(self, result: Result, kind: str, seconds: float) -> None:
        """A request has ended.

        kind: base, expert, mixture or auto.
        """
        self._requests.labels(result.finish_reason, kind).inc()
        self._prompt_tokens.inc(result.prompt_tokens)
        self._generated_tokens.inc(len(result.token_ids))
        self._reused_tokens.inc(result.reused_tokens)
        self._whole.observe(seconds)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


class _EngineCollector:
    """Reads an engine's counters when Prometheus asks."""

    def __init__(self, engine: Engine, admission: Admission) -> None:
        self._engine, self._admission = engine, admission

    def collect(self) -> Iterator[Any]:
        stats = self._engine.stats()
        counters = {
            "tokens_computed": stats.tokens_computed,
            "tokens_looked_up": stats.tokens_looked_up,
            "tokens_found": stats.tokens_reused,
            "tokens_resumed": stats.tokens_resumed,
            "tokens_evicted": stats.tokens_evicted,
            "preemptions": stats.preemptions,
        }
        gauges = {
            "cache_blocks_in_use": stats.blocks_in_use,
            "cache_blocks_cached": stats.blocks_cached,
            "cache_blocks_free": stats.blocks_free,
            "requests_running": stats.requests_running,
            "requests_waiting": stats.requests_waiting,
            "requests_in_work": self._admission.count,
            "experts_loaded": len(self._engine.experts()),
            "expert_slots_in_use": self._engine.bank.slots_in_use,
        }
        for name, value in counters.items():
            yield CounterMetricFamily(f"zweave_{name}", f"EngineStats.{name}", value)
        for name, value in gauges.items():
            yield GaugeMetricFamily(f"zweave_{name}", name.replace("_", " "), value)
