"""Shapes of the linears of well-known models."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """M out_features, N in_features of the modules `name` of `model`."""

    model: str
    name: str
    M: int
    N: int

    @property
    def rank(self) -> int:
        return min(self.M, self.N)


def _decoder(model: str, hidden: int, queries: int, keys: int, intermediate: int) -> tuple[Shape, ...]:
    """queries, keys: heads times head size."""
    shapes = [("q", queries, hidden), ("k v", keys, hidden), ("o", hidden, queries)]
    shapes += [("gate up", intermediate, hidden), ("down", hidden, intermediate)]
    if queries == hidden:
        shapes = [("q o", hidden, hidden), *(s for s in shapes if s[0] not in ("q", "o"))]
    return tuple(Shape(model, *shape) for shape in shapes)


MODELS = {
    "smollm2": _decoder("smollm2", hidden=576, queries=576, keys=192, intermediate=1536),
    "qwen3-0.6b": _decoder("qwen3-0.6b", hidden=1024, queries=2048, keys=1024, intermediate=3072),
    "qwen3-8b": _decoder("qwen3-8b", hidden=4096, queries=4096, keys=1024, intermediate=12288),
    "llama3-8b": _decoder("llama3-8b", hidden=4096, queries=4096, keys=1024, intermediate=14336),
    "llama3-70b": _decoder("llama3-70b", hidden=8192, queries=8192, keys=1024, intermediate=28672),
}
