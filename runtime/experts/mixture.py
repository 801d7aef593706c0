"""Mixtures of experts: z = sum_k alpha_k z_k, alpha global or one a layer."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..checkpoint.module_name import layer_of
from ..errors import ZweaveError, shortened
from ..text.prompt_template import PromptTemplate
from ..validation import as_number
from .expert import Expert

Alpha: TypeAlias = float | tuple[float, ...]
# How a caller selects a model: an expert's name, weights by name (one number, or one a layer), None for the base.
ExpertChoice: TypeAlias = str | Mapping[str, float | Sequence[float]] | None

# Digest of the base model, where a mixture's stands else.
BASE_DIGEST = "base"

RESERVED_NAMES = ("base", "auto")
# Before the names of experts that an engine makes of descriptions, which no list and no message tells.
DESCRIBED = "described/"
_NAME = re.compile(r"[A-Za-z0-9._/-]{1,255}")


def check_name(name: object) -> str:
    """Returns an expert's name if it may be one: letters, digits and `-_./`, neither "base" nor "auto"."""
    if not isinstance(name, str):
        raise ZweaveError(f"an expert's name must be a string, not {type(name).__name__}")
    if name in RESERVED_NAMES:
        raise ZweaveError(f"the expert name {name!r} is reserved: choose another")
    if not _NAME.fullmatch(name):
        is_file = name.endswith(".safetensors")
        way_out = (
            "load the file under one by --load NAME=FILE"
            if is_file
            else "use 1 to 255 letters, digits and -_./"
        )
        raise ZweaveError(f"{shortened(name)} cannot be an expert's name: {way_out}")
    return name


def check_new_name(name: object) -> str:
    """Returns an expert's name if a caller may load one under it: the engine names what it makes of descriptions."""
    if check_name(name).startswith(DESCRIBED):
        raise ZweaveError(f"the expert names under {DESCRIBED} are reserved for descriptions: choose another")
    return str(name)


@dataclass(frozen=True, slots=True)
class Mixture:
    """Names of experts and their weights, which `Bank.resolve` looks up.

    parts: (name, weight) sorted by name; a weight is one number for all layers, or a tuple of one a layer. Equal
        mixtures compare equal.
    Raises ZweaveError if it is empty, a name cannot be one or is there twice, or a weight is not finite.
    """

    parts: tuple[tuple[str, Alpha], ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ZweaveError("the mixture is empty: name at least one expert")
        parts = tuple(sorted((check_name(name), _alpha(name, alpha)) for name, alpha in self.parts))
        for (name, _), (following, _) in pairwise(parts):
            if name == following:
                raise ZweaveError(f"the mixture names the expert {name!r} twice")
        object.__setattr__(self, "parts", parts)

    @classmethod
    def parse(cls, choice: object) -> "Mixture | None":
        """Parses the expert of a request.

        None or "base" is the base model (None), a name is that expert, and a mapping gives each name one
        number or a list of one number a layer.
        """
        if choice is None or choice == "base":
            return None
        if isinstance(choice, Mixture):
            return choice
        if choice == "auto":
            raise ZweaveError(
                "the expert 'auto' needs a dispatcher, and there is none here: give one, or name an expert"
            )
        if isinstance(choice, str):
            return cls(((choice, 1.0),))
        if isinstance(choice, Mapping):
            return cls(tuple(choice.items()))
        raise ZweaveError(
            f"an expert is a name, a mapping of names to weights, or None, not {type(choice).__name__}"
        )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.parts)

    def weights(self, num_layers: int) -> tuple[tuple[float, ...], ...]:
        """The weights of each expert, in the order of `names`, one a layer.

        Raises ZweaveError if a per-layer list has another length.
        """
        return tuple(spread(name, alpha, num_layers) for name, alpha in self.parts)


def plain_choice(choice: ExpertChoice) -> ExpertChoice:
    """A choice of `Mixture.parse` whose weights are Python's own numbers, if some are numpy's or torch's."""
    if not isinstance(choice, Mapping) or all(isinstance(alpha, int | float) for alpha in choice.values()):
        return choice
    return {name: _plain(_alpha(name, alpha)) for name, alpha in choice.items()}


def _plain(alpha: Alpha) -> float | list[float]:
    return list(alpha) if isinstance(alpha, tuple) else alpha


def spread(name: str, alpha: Alpha, num_layers: int) -> tuple[float, ...]:
    """An expert's weights, one a layer; ZweaveError if a list has another length."""
    if not isinstance(alpha, tuple):
        return (alpha,) * num_layers
    if len(alpha) != num_layers:
        raise ZweaveError(
            f"the mixture gives {name!r} {len(alpha)} weights, and the model has {num_layers} layers"
        )
    return alpha


def check_same_kind(kinds: Sequence[tuple[str, str, bool]]) -> None:
    """Raises ZweaveError unless all experts, given as (name, scope, renormalise), agree on scope and renormalise."""
    first_name, first_scope, first_renormalise = kinds[0]
    for name, scope, renormalise in kinds[1:]:
        if scope != first_scope:
            raise ZweaveError(
                f"{first_name!r} and {name!r} cannot be mixed: "
                f"the scope of the one is {first_scope!r}, of the other {scope!r}"
            )
        if renormalise != first_renormalise:
            asks, does_not = (first_name, name) if first_renormalise else (name, first_name)
            raise ZweaveError(
                f"{first_name!r} and {name!r} cannot be mixed: "
                f"{asks!r} asks for renormalisation, {does_not!r} does not"
            )


def common_template(templates: Iterable[PromptTemplate | None]) -> PromptTemplate | None:
    """The prompt template of a mixture: that of its experts if all have the same, else None."""
    distinct = set(templates)
    return distinct.pop() if len(distinct) == 1 else None


def mix_named(parts: Sequence[tuple[str, Expert, Alpha]], layers: int | None = None) -> Expert:
    """Mixes named experts into one, see `mix_experts`.

    parts: (name, expert, weight).
    layers: number of layers of the model; by default up to the last that an expert adapts.
    Raises ZweaveError if they disagree on scope or renormalisation, are for different weights, or a list does not fit.
    """
    check_same_kind([(name, expert.scope, expert.renormalise) for name, expert, _ in parts])
    if len({expert.base_digest for _, expert, _ in parts if expert.base_digest}) > 1:
        raise ZweaveError("the experts were trained for different weights and cannot be mixed")
    layers = layers or 1 + max(layer_of(module) for _, expert, _ in parts for module in expert.z)
    weights = [spread(name, alpha, layers) for name, _, alpha in parts]
    return mix_experts([expert for _, expert, _ in parts], weights)


def mix_experts(experts: Sequence[Expert], weights: Sequence[Sequence[float]]) -> Expert:
    """Mixes experts into one: z = sum_k alpha_k z_k, summed in float64.

    A matrix that no expert adapts stays that of the base model, whatever the sum of the weights; where only some
    adapt it, z is 1 in the others. The result is not renormalised yet: that is done when it is applied.

    experts: at least one, of the same scope and renormalisation (`check_same_kind`).
    weights: for each expert one weight a layer.
    Raises ZweaveError if a sum is too large for float32.
    """
    mixed = mix_z([expert.z for expert in experts], weights)
    return Expert(
        z=mixed,
        scope=experts[0].scope,
        renormalise=experts[0].renormalise,
        first_layer=min(expert.first_layer for expert in experts),
        base_digest=next((expert.base_digest for expert in experts if expert.base_digest), None),
        prompt_template=common_template(expert.prompt_template for expert in experts),
    )


def mix_z(parts: Sequence[Mapping[str, Tensor]], weights: Sequence[Sequence[float]]) -> dict[str, Tensor]:
    """The z of a mixture from those of its experts, as `mix_experts` says."""
    mixed = {}
    for module in dict.fromkeys(module for part in parts for module in part):
        layer = layer_of(module)
        rank = next(part[module].numel() for part in parts if module in part)
        total = np.zeros(rank)
        for part, alphas in zip(parts, weights, strict=True):
            z = part.get(module)
            if z is None:
                total += alphas[layer]
            elif z.numel() == rank:
                total += alphas[layer] * z.detach().cpu().numpy().astype(np.float64)
            else:
                ranks = f"{rank} and {z.numel()}"
                raise ZweaveError(f"the experts are for different models: {module} has {ranks} values")
        if not (np.abs(total) < np.finfo(np.float32).max).all():
            raise ZweaveError(f"the mixture's weights are too large: {module} overflows")
        mixed[module] = torch.from_numpy(total.astype(np.float32))
    return mixed


def _alpha(name: object, alpha: Any) -> Alpha:
    if getattr(alpha, "ndim", 0) == 1:
        alpha = alpha.tolist()
    if isinstance(alpha, Sequence) and not isinstance(alpha, str | bytes):
        if len(alpha) == 0:
            raise ZweaveError(f"the mixture gives {name!r} an empty list of weights")
        return tuple(_number(name, value) for value in alpha)
    return _number(name, alpha)


def _number(name: object, value: object) -> float:
    number = as_number(value)
    if number is None:
        raise ZweaveError(f"the mixture's weight of {name!r} must be a finite number, not {shortened(value)}")
    # Adding zero turns -0.0 into 0.0, so that equal mixtures have one form.
    return float(number) + 0.0
