"""The fixtures of the serving benches: a model, experts by number, our engine, the reference model."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

import torch

from zweave.checkpoint import resolve_model
from zweave.checkpoint.module_name import layer_of
from zweave.decomposition import decompose
from zweave.engine import Engine
from zweave.experts import Expert

from ..harness.harness import Provider
from .engine_server import EngineServer
from .reference_model import REGRET_LIMITS, Changes, ReferenceModel, load_transformers
from .workload import Workload, random_expert

Answers = list[list[int]]


class Fixtures:
    """A model and what benches need of it, each made at its first use."""

    def __init__(self, model: str, dtype: str) -> None:
        self.dtype = dtype
        self.checkpoint = resolve_model(model)
        self.decomposition = decompose(self.checkpoint)
        self.config = self.checkpoint.config

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @cached_property
    def engine(self) -> Engine:
        return self.new_engine()

    def new_engine(self, prefix_cache: bool = False) -> Engine:
        # Rounds that repeat their prompts would find them in a prefix cache.
        return Engine(self.checkpoint.directory, dtype=self.dtype, prefix_cache=prefix_cache)

    @cached_property
    def transformers(self) -> Any:
        return load_transformers(self.checkpoint.directory, self.torch_dtype)

    @cached_property
    def reference_model(self) -> ReferenceModel:
        return ReferenceModel(self.checkpoint.directory, self.decomposition)

    @lru_cache(maxsize=64)  # noqa: B019 (they live as long as the bench)
    def expert(self, kind: str, index: int) -> Expert:
        """An expert of a kind.

        kind: "always", "after_prompt" with the same z, "first_layer" with those of the upper half, or "leading".
        """
        if kind == "after_prompt":
            return replace(self.expert("always", index), scope="after_prompt")
        if kind == "first_layer":
            whole, half = self.expert("always", index), self.config.num_layers // 2
            upper = {module: z for module, z in whole.z.items() if layer_of(module) >= half}
            return replace(whole, z=upper, first_layer=half)
        return random_expert(self.config, index, leading=8 if kind == "leading" else 1)

    @lru_cache(maxsize=16)  # noqa: B019
    def _merged(self, kind: str, index: int) -> Changes:
        return self.reference_model.svf(self.expert(kind, index))

    def engine_server(
        self, workload: Workload, kind: str = "always", experts: int = 0, engine: Engine | None = None
    ) -> EngineServer:
        """Our engine with a number of experts of a kind loaded."""
        engine = engine or self.engine
        names = [f"{kind}-{index}" for index in range(experts)]
        for index, name in enumerate(names):
            if name not in engine.experts():
                engine.load_expert(name, self.expert(kind, index))
        return EngineServer(engine, workload, names)

    def regret(
        self, prompts: Sequence[Sequence[int]], answers: Answers, kind: str = "always", experts: int = 0
    ) -> float:
        """Mean regret a token, prompt i being under expert i mod `experts`."""

        def changes(index: int) -> Changes | None:
            return self._merged("leading" if kind == "leading" else "always", index) if experts else None

        adapted_from = len(prompts[0]) - 1 if kind == "after_prompt" else 0
        return self.mean_regret(prompts, answers, changes, max(1, experts), adapted_from)

    def mean_regret(
        self,
        prompts: Sequence[Sequence[int]],
        answers: Answers,
        changes: Callable[[int], Changes | None],
        groups: int,
        adapted_from: int = 0,
    ) -> float:
        """Mean regret a token, prompt i being under change i mod `groups` of the weights."""
        total = 0.0
        for group in range(min(groups, len(prompts))):
            mine = range(group, len(prompts), groups)
            total += self.reference_model.regret(
                [prompts[i] for i in mine], [answers[i] for i in mine], changes(group), adapted_from
            )
        return total / sum(len(answer) for answer in answers)

    def text_provider(
        self,
        name: str,
        serve: Callable[[], Answers],
        regret: Callable[[Answers], float],
        limit: float | None = None,
        **labels: object,
    ) -> Provider:
        """A provider whose answers are checked by their regret; its limit is that of the dtype unless given."""
        limit = REGRET_LIMITS[self.torch_dtype] if limit is None else limit
        return Provider(name, [serve], lambda: regret(serve()), limit, labels=labels)
