"""Trainable adapters of a frozen model: the protocol, and the z vectors of an expert."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import ZweaveError
from ..experts.expert import Expert
from ..experts.support import Support
from ..text.prompt_template import PromptTemplate
from .recipe import Recipe
from .svf import Factors, Packs, adapt


class Adapter(Protocol):
    """The trainable part of a frozen model."""

    def parameters(self) -> list[nn.Parameter]: ...

    def base(self) -> Any:
        """A context without the adapter; it may be nested."""

    def before_step(self) -> None:
        """Called between the backward pass and the optimizer's step."""

    def after_step(self, step: int) -> None:
        """Called after the optimizer's step."""

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: dict[str, Any]) -> None: ...

    def save(
        self,
        path: Path,
        description: str,
        training: dict[str, Any],
        template: PromptTemplate | None = None,
    ) -> None:
        """Writes the adapter with what it was trained on; see zweave.Expert."""


class SvfAdapter:
    """z vectors of all adapted matrices of a model, limited to the recipe's support and layers.

    A sparse support is learned: three times in the first half of the training the components are pruned to those that
    change the matrix most, the last time to as many as the support allows.
    """

    def __init__(
        self,
        model: nn.Module,
        factors: Factors,
        recipe: Recipe,
        base_digest: str | None = None,
        packs: Packs | None = None,
    ) -> None:
        self._recipe, self._digest = recipe, base_digest
        self._support = Support.parse(recipe.support)
        self.linears = adapt(model, factors, recipe.first_layer, self._support, packs)
        if not self.linears:
            raise ZweaveError(f"the model has no layer {recipe.first_layer}: lower first_layer")
        self._kept = {name: torch.ones_like(linear.z) for name, linear in self.linears.items()}

    def parameters(self) -> list[nn.Parameter]:
        return [linear.z for linear in self.linears.values()]

    @contextmanager
    def base(self) -> Iterator[None]:
        before = next(iter(self.linears.values())).base
        self._set_base(True)
        try:
            yield
        finally:
            self._set_base(before)

    def _set_base(self, base: bool) -> None:
        for linear in self.linears.values():
            linear.base = base

    def before_step(self) -> None:
        if self._support.kind == "sparse":
            for name, linear in self.linears.items():
                if linear.z.grad is not None:
                    linear.z.grad *= self._kept[name]

    def after_step(self, step: int) -> None:
        if self._support.kind != "sparse":
            return
        for share, at in ((1 / 3, 0.25), (2 / 3, 0.375), (1.0, 0.5)):
            if step + 1 == max(1, round(at * self._recipe.steps)):
                self._prune(share)
        for name, linear in self.linears.items():
            # AdamW's momentum also moves components without a gradient.
            linear.z.data.copy_(torch.where(self._kept[name] > 0, linear.z.data, 1.0))

    def _prune(self, share: float) -> None:
        """Keeps the components that change the matrix most.

        share: 0 keeps all, 1 as many as the support allows; between, the number falls by equal ratios.
        """
        for name, linear in self.linears.items():
            rank, target = len(linear.z), self._support.components(len(linear.z))
            count = max(target, round(rank * (target / rank) ** share))
            weight = (linear.sigma * (linear.z.detach() - 1)).abs() * self._kept[name]
            kept = torch.zeros_like(weight)
            kept[weight.topk(count).indices] = 1
            self._kept[name] = kept

    def state(self) -> dict[str, Any]:
        return {
            "z": [linear.z.detach().clone() for linear in self.linears.values()],
            "kept": [kept.clone() for kept in self._kept.values()],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        for name, z, kept in zip(self.linears, state["z"], state["kept"], strict=True):
            self.linears[name].z.data.copy_(z)
            self._kept[name] = kept.to(z)

    def vectors(self) -> dict[str, Tensor]:
        """z [R] of each matrix, rounded as a half-precision file stores it."""
        return {name: (linear.full_z() - 1).half().float() + 1 for name, linear in self.linears.items()}

    def save(
        self,
        path: Path,
        description: str,
        training: dict[str, Any],
        template: PromptTemplate | None = None,
    ) -> None:
        Expert(
            z=self.vectors(),
            base_digest=self._digest,
            scope=self._recipe.scope,
            first_layer=self._recipe.first_layer,
            support=self._recipe.support,
            description=description,
            training=training,
            prompt_template=template,
        ).save(path, half=True)
