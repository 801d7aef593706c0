"""A LoRA: for each adapted matrix a product of two thin ones, W' = W + scaling * B A."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checkpoint.module_name import layer_of
from ..errors import ZweaveError, shortened
from ..names import Scope
from ..step_turns import rest
from ..text.prompt_template import PromptTemplate

# Magnitude that no value may have. Rows of other requests meet an adapter's components with a scale of zero, which
# hides a product as long as it is finite in float32.
_LARGEST = 1e30


@dataclass(frozen=True, slots=True, eq=False)
class LoraPair:
    """What a LoRA adds to one matrix W [M, N].

    a: [r, N].
    b: [M, r].
    scaling: alpha / r, or alpha / sqrt(r) of rsLoRA.
    """

    a: Tensor
    b: Tensor
    scaling: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def norm(self) -> float:
        """Frobenius norm of scaling * B A, whose Gram matrices are of size r alone."""
        a, b = self.a.double(), self.b.double()
        return abs(self.scaling) * math.sqrt(max(0.0, float(((b.T @ b) * (a @ a.T)).sum())))


@dataclass(frozen=True, slots=True, eq=False)
class Lora:
    """A LoRA adapter.

    pairs: adapted matrix -> what it adds; ranks may differ.
    scope: "always", or "after_prompt": it acts from the invocation tokens on, or else from the last header of
        the chat template on.
    invocation_tokens: of an activated LoRA, which acts from their last occurrence in a prompt on; else empty.
    description: a text for people.
    prompt_template: the prompt that it was trained on, which a bare text is put into; None if that is not known.
    Raises ZweaveError if shapes do not fit each other, or a value is NaN, infinite or above 1e30.
    """

    pairs: Mapping[str, LoraPair]
    scope: Scope = "always"
    invocation_tokens: tuple[int, ...] = ()
    description: str = ""
    prompt_template: PromptTemplate | None = None

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ZweaveError("the adapter adapts no matrix")
        for module, pair in self.pairs.items():
            _check_shapes(module, pair)
        _check_values(self.pairs)

    @property
    def rank(self) -> int:
        """The largest of its matrices' ranks."""
        return max(pair.rank for pair in self.pairs.values())

    @property
    def first_layer(self) -> int:
        """It changes nothing below this layer."""
        return min(layer_of(module) for module in self.pairs)

    @property
    def digest(self) -> str:
        """sha256 of everything that changes what it computes."""
        hashed = hashlib.sha256(f"zweave-lora-1 {self.scope} {self.invocation_tokens}".encode())
        for module in sorted(self.pairs):
            pair = self.pairs[module]
            hashed.update(f"\n{module} {pair.rank} {pair.scaling.hex()}\n".encode())
            for part in (pair.a, pair.b):
                hashed.update(f"{part.dtype}".encode())
                hashed.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().data)
            rest()
        return hashed.hexdigest()

    def check(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Raises ZweaveError unless it fits a model.

        shapes: the model's adaptable matrices, (out_features, in_features) each.
        """
        for module, pair in self.pairs.items():
            if module not in shapes:
                raise ZweaveError(f"the model has no adaptable matrix {shortened(module)}")
            M, N = shapes[module]
            found = (pair.b.shape[0], pair.a.shape[1])
            if found != (M, N):
                raise ZweaveError(
                    f"{module}: the adapter is for a matrix of {found[0]} x {found[1]} and the model's is "
                    f"{M} x {N}: it is for another model"
                )


def _check_shapes(module: str, pair: LoraPair) -> None:
    a, b = pair.a, pair.b
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1] or 0 in (*a.shape, *b.shape):
        raise ZweaveError(f"{module}: lora_A {list(a.shape)} and lora_B {list(b.shape)} do not share a rank")


def _check_values(pairs: Mapping[str, LoraPair]) -> None:
    # The extremes keep NaN, and are looked at together: `isfinite` of each costs more than its matrix.
    extremes: list[Tensor] = []
    for pair in pairs.values():
        extremes += (*pair.a.aminmax(), *pair.b.aminmax())
        rest()
    scalings = torch.tensor([pair.scaling for pair in pairs.values()], dtype=torch.float64)
    factors = torch.stack([torch.ones_like(scalings), scalings.abs().clamp(min=1)], 1)
    largest = torch.stack(extremes).double().view(-1, 2).abs().amax(1) * factors.flatten()
    bounded = largest <= _LARGEST
    if not bounded.all():
        first = int(bounded.int().argmin())
        module, name = [*pairs][first // 2], ("lora_A", "lora_B")[first % 2]
        found = f"values up to {largest[first]:.1e}" if largest[first].isfinite() else "NaN or infinity"
        raise ZweaveError(f"{module}: {name} holds {found}")
