"""A mixture whose names have been looked up."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from ..errors import ZweaveError
from ..text.prompt_template import PromptTemplate
from .expert import Scope
from .expert_entry import ExpertEntry
from .lora_entry import LoraEntry
from .mixture import BASE_DIGEST, Mixture, check_same_kind, common_template
from .slot_rows import SlotRows

# What a name stands for.
Entry: TypeAlias = ExpertEntry | LoraEntry
Part: TypeAlias = tuple[Entry, tuple[float, ...]]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class ResolvedMixture:
    """A mixture whose names have been looked up: unloading or reloading a name does not change it.

    digest: of everything that changes what it computes; for a single expert that expert's digest.
    scope: from which token on it acts.
    first_layer: it adapts nothing below this layer.
    parts: experts of distinct content, sorted by digest, each with its weights, one a layer; empty for the base.
    prompt_template: of its experts, if all have the same.
    invocation_tokens: from whose last occurrence in a prompt on it acts; empty if `scope` alone says so.
    held: rows of its slot, once they are kept elsewhere than there: what runs under it goes on whatever becomes of the
        experts' files.
    """

    digest: str
    scope: Scope
    first_layer: int
    parts: tuple[Part, ...]
    prompt_template: PromptTemplate | None = None
    invocation_tokens: tuple[int, ...] = ()
    held: list[SlotRows] = field(default_factory=list, repr=False)

    @property
    def rows_digest(self) -> str:
        """Of what the rows of its slot follow from."""
        return rows_digest([part for part, _ in self.parts], self.digest)

    @classmethod
    def base(cls, num_layers: int) -> "ResolvedMixture":
        """The base model."""
        return cls(BASE_DIGEST, "always", num_layers, ())

    @classmethod
    def of(cls, mixture: Mixture, found: Sequence[Entry], num_layers: int) -> "ResolvedMixture":
        """A mixture of what its names stand for.

        Raises ZweaveError if a per-layer list does not fit the model, or the experts disagree on scope,
        renormalisation or what activates them.
        """
        check_same_kind([(part.name, part.scope, part.renormalise) for part in found])
        invocation_tokens = _common_invocation(found)
        # The same content under two names is one expert with the sum of the weights.
        merged: dict[str, Part] = {}
        for part, weights in zip(found, mixture.weights(num_layers), strict=True):
            if part.digest in merged:
                weights = tuple(a + b for a, b in zip(merged[part.digest][1], weights, strict=True))
            merged[part.digest] = (part, weights)
        parts = tuple(merged[digest] for digest in sorted(merged))
        return cls(
            _digest(parts),
            found[0].scope,
            min(part.first_layer for part in found),
            parts,
            common_template(part.prompt_template for part in found),
            invocation_tokens,
        )


def rows_digest(entries: Sequence[Entry], digest: str) -> str:
    """Digest of what a mixture's rows follow from, given its own: LoRAs leave z = 1, all alike."""
    return "z = 1" if all(isinstance(entry, LoraEntry) for entry in entries) else digest


def _common_invocation(parts: Sequence[Entry]) -> tuple[int, ...]:
    """What activates all parts of a mixture; ZweaveError if they differ."""
    first = parts[0]
    for part in parts[1:]:
        if part.invocation_tokens != first.invocation_tokens:
            raise ZweaveError(
                f"{first.name!r} and {part.name!r} cannot be mixed: they are activated by different tokens"
            )
    return first.invocation_tokens


def _digest(parts: tuple[Part, ...]) -> str:
    if len(parts) == 1 and set(parts[0][1]) == {1.0}:
        return parts[0][0].digest
    hashed = hashlib.sha256(b"zweave-mixture-1")
    for part, weights in parts:
        hashed.update(f"\n{part.digest} {' '.join(weight.hex() for weight in weights)}".encode())
    return hashed.hexdigest()
