"""The server's metrics on Ray's own endpoint, where those of each replica stand by themselves."""

from prometheus_client import CollectorRegistry
from ray.serve.metrics import Gauge


class RayMetrics:
    """Passes on what a registry tells, under the names of /metrics; Ray puts `ray_` before and adds the replica.

    All are gauges: Ray's counters can only be added to. Prometheus' rates come out the same.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._gauges: dict[str, Gauge] = {}

    def update(self) -> None:
        """Tells Ray the values of now."""
        for family in self._registry.collect():
            for sample in family.samples:
                if not sample.name.endswith("_created"):
                    self._gauge(sample.name, family.documentation, tuple(sample.labels)).set(
                        sample.value, tags=dict(sample.labels)
                    )

    def _gauge(self, name: str, description: str, labels: tuple[str, ...]) -> Gauge:
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, description, tag_keys=labels)
        return self._gauges[name]
