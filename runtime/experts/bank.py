"""The bank: registered experts, and the slots of those in use."""

import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from threading import RLock

import torch
from torch import Tensor

from ..checkpoint.module_name import layer_of
from ..errors import ZweaveError
from ..planner.plan import Plan
from ..text.prompt_template import PromptTemplate
from .bundled import expert_file
from .expert import Expert, Scope
from .mixture import BASE_DIGEST, Mixture, check_name, check_same_kind, common_template, mix_experts
from .slot_tables import SlotRows, SlotTables


class BankFullError(ZweaveError):
    """Every slot of the bank is in use: a release frees one."""


@dataclass(frozen=True, slots=True, eq=False)
class ExpertEntry:
    """A registered expert, without its z unless it was given in memory.

    name: under which it is registered.
    digest: of the expert, see `Expert.digest`.
    scope: of the expert.
    first_layer: of the expert.
    renormalise: of the expert.
    description: of the expert.
    prompt_template: of the expert.
    path: its file, read again when a slot needs its z; None if `expert` is in memory.
    expert: the expert, None if it is in a file.
    """

    name: str
    digest: str
    scope: Scope
    first_layer: int
    renormalise: bool
    description: str
    prompt_template: PromptTemplate | None
    path: Path | None
    expert: Expert | None

    def read(self) -> Expert:
        """The expert; ZweaveError if its file is gone or was changed."""
        if self.expert is not None:
            return self.expert
        assert self.path is not None
        expert = Expert.load(self.path)
        if expert.digest != self.digest:
            raise ZweaveError(f"{self.path} changed since it was loaded as {self.name!r}: load it again")
        return expert


@dataclass(frozen=True, slots=True, eq=False)
class ResolvedMixture:
    """A mixture whose names have been looked up: unloading or reloading a name does not change it.

    digest: of everything that changes what it computes; for a single expert that expert's digest.
    scope: from which token on it acts.
    first_layer: it adapts nothing below this layer.
    parts: experts of distinct content, sorted by digest, each with its weights, one a layer; empty for the base.
    prompt_template: of its experts, if all have the same.
    """

    digest: str
    scope: Scope
    first_layer: int
    parts: tuple[tuple[ExpertEntry, tuple[float, ...]], ...]
    prompt_template: PromptTemplate | None = None


class Bank:
    """Registers experts and assigns the slots of `tables` to the experts and mixtures in use.

    Any number of experts may be registered; only those given as `Expert` stay in memory, others are read from their
    file when they need a slot. Slots are keyed by digest, so equal mixtures share one. `acquire` increments a slot's
    ref count and `release` decrements it; an unreferenced slot is evicted when another mixture needs one, least
    recently used first. Slot 0 is the base model's. All methods may be called from any thread.

    base_digest: of the model's weights; experts for other weights are refused.
    The other arguments are those of `SlotTables`.

    tables: the rows of the slots.
    first_layers: the first layers above 0 of registered experts, ascending.
    """

    def __init__(
        self,
        sigmas: Mapping[str, Tensor],
        slots: int,
        device: torch.device | str = "cpu",
        base_digest: str | None = None,
        plan: Plan | None = None,
        max_error: float = 0.0,
    ) -> None:
        if slots < 2:
            raise ZweaveError(f"a bank needs at least 2 slots (one is the base model's), not {slots}")
        self._slots = slots
        self._shapes = {module: tuple(sigma.shape) for module, sigma in sigmas.items()}
        self._num_layers = 1 + max((layer_of(module) for module in sigmas), default=-1)
        self._base_digest = base_digest
        self.tables = SlotTables(sigmas, slots, device, plan, max_error)
        self._experts: dict[str, ExpertEntry] = {}
        self.first_layers: tuple[int, ...] = ()
        self._free = list(range(slots - 1, 0, -1))
        self._slot_of: dict[str, int] = {BASE_DIGEST: 0}
        self._digest_of: dict[int, str] = {0: BASE_DIGEST}
        self._ref_counts: dict[int, int] = {}
        self._unreferenced: OrderedDict[int, None] = OrderedDict()
        self._lock = RLock()

    @property
    def num_slots(self) -> int:
        """Slots, the base model's included."""
        return self._slots

    def digest_of(self, slot: int) -> str:
        """Digest of the mixture that holds a slot, "" for a free slot."""
        with self._lock:
            return self._digest_of.get(slot, "")

    def load(self, name: str, expert: str | PathLike[str] | Expert) -> ExpertEntry:
        """Registers an expert under a name; mixtures that were resolved earlier keep the expert they found.

        expert: an expert, its file, or the name of one that comes with zweave.
        Raises ZweaveError if the name cannot be one, or the file or expert does not fit the model.
        """
        check_name(name)
        path = None if isinstance(expert, Expert) else expert_file(expert).absolute()
        held = expert if isinstance(expert, Expert) else Expert.load(expert)
        try:
            held.check(self._shapes, self._base_digest)
        except ZweaveError as error:
            raise ZweaveError(f"{path or f'the expert {name!r}'}: {error}") from None
        entry = ExpertEntry(
            name=name,
            digest=held.digest,
            scope=held.scope,
            first_layer=held.first_layer,
            renormalise=held.renormalise,
            description=held.description,
            prompt_template=held.prompt_template,
            path=path,
            expert=_copy(held) if path is None else None,
        )
        with self._lock:
            self._experts[name] = entry
            self._note_first_layers()
        return entry

    def unload(self, name: str) -> None:
        """Forgets a name at once; slots in use stay until they are released."""
        with self._lock:
            self._find(name)
            del self._experts[name]
            self._note_first_layers()

    def experts(self) -> list[str]:
        """Names of the registered experts, in the order of their first loading."""
        with self._lock:
            return list(self._experts)

    def registered(self, name: str) -> ExpertEntry:
        """The entry of a registered expert; ZweaveError if there is none of that name."""
        with self._lock:
            return self._find(name)

    def resolve(self, mixture: Mixture | ResolvedMixture | None) -> ResolvedMixture:
        """Looks up the names of a mixture; None is the base model, with digest "base" and no parts.

        Raises ZweaveError if a name is unknown, a per-layer list does not fit the model, or the experts
        disagree on scope or renormalisation.
        """
        if isinstance(mixture, ResolvedMixture):
            return mixture
        if mixture is None:
            return ResolvedMixture(BASE_DIGEST, "always", self._num_layers, ())
        with self._lock:
            found = [self._find(name) for name in mixture.names]
        check_same_kind([(part.name, part.scope, part.renormalise) for part in found])
        # The same content under two names is one expert with the sum of the weights.
        merged: dict[str, tuple[ExpertEntry, tuple[float, ...]]] = {}
        for part, weights in zip(found, mixture.weights(self._num_layers), strict=True):
            if part.digest in merged:
                weights = tuple(a + b for a, b in zip(merged[part.digest][1], weights, strict=True))
            merged[part.digest] = (part, weights)
        parts = tuple(merged[digest] for digest in sorted(merged))
        return ResolvedMixture(
            _digest(parts),
            found[0].scope,
            min(part.first_layer for part in found),
            parts,
            common_template(part.prompt_template for part in found),
        )

    def bind(self, mixture: Mixture | ResolvedMixture | None) -> ResolvedMixture:
        """The old name of `resolve`."""
        warnings.warn("Bank.bind is now Bank.resolve", DeprecationWarning, stacklevel=2)
        return self.resolve(mixture)

    def acquire(self, mixture: Mixture | ResolvedMixture | None) -> int:
        """Returns a mixture's slot and increments its ref count; each call needs a `release`.

        None is the base model, in slot 0. Raises BankFullError if other mixtures hold all slots, ZweaveError as
        `resolve` and `SlotTables.rows` do, and if an expert's file is gone or was changed.
        """
        slot = self.try_acquire(mixture)
        if slot is None:
            raise BankFullError(
                f"all {self._slots - 1} expert slots are in use: "
                "wait for a request to finish or make the bank larger"
            )
        return slot

    def try_acquire(self, mixture: Mixture | ResolvedMixture | None) -> int | None:
        """Like `acquire`, but None if other mixtures hold all slots."""
        resolved = self.resolve(mixture)
        if not resolved.parts:
            return 0
        with self._lock:
            slot = self._slot_of.get(resolved.digest)
            if slot is None:
                if not self._free and not self._unreferenced:
                    return None
                rows = self._rows_of(resolved)
                slot = self._take_slot()
                self.tables.write(slot, rows)
                self._slot_of[resolved.digest] = slot
                self._digest_of[slot] = resolved.digest
            self._unreferenced.pop(slot, None)
            self._ref_counts[slot] = self._ref_counts.get(slot, 0) + 1
            return slot

    def release(self, slot: int) -> None:
        """Undoes one `acquire`; the base model's slot 0 is not counted."""
        if slot == 0:
            return
        with self._lock:
            if slot not in self._ref_counts:
                raise RuntimeError(f"slot {slot} is released and nobody holds it")
            self._ref_counts[slot] -= 1
            if not self._ref_counts[slot]:
                del self._ref_counts[slot]
                self._unreferenced[slot] = None

    def _note_first_layers(self) -> None:
        layers = {expert.first_layer for expert in self._experts.values()}
        self.first_layers = tuple(sorted(layer for layer in layers if 0 < layer < self._num_layers))

    def _find(self, name: str) -> ExpertEntry:
        if name in self._experts:
            return self._experts[name]
        close = get_close_matches(name, self._experts, n=3)
        if close:
            hint = f"did you mean {' or '.join(map(repr, close))}?"
        elif self._experts:
            known = sorted(self._experts)
            rest = f" and {len(known) - 8} more" if len(known) > 8 else ""
            hint = f"loaded: {', '.join(known[:8])}{rest}"
        else:
            hint = "none is loaded"
        raise ZweaveError(f"there is no expert {name!r}: {hint}")

    def _take_slot(self) -> int:
        if self._free:
            return self._free.pop()
        slot, _ = self._unreferenced.popitem(last=False)
        del self._slot_of[self._digest_of.pop(slot)]
        return slot

    def _rows_of(self, resolved: ResolvedMixture) -> SlotRows:
        parts = [(part.read(), weights) for part, weights in resolved.parts]
        return self.tables.rows(mix_experts([part for part, _ in parts], [weights for _, weights in parts]))


def _digest(parts: tuple[tuple[ExpertEntry, tuple[float, ...]], ...]) -> str:
    if len(parts) == 1 and set(parts[0][1]) == {1.0}:
        return parts[0][0].digest
    hashed = hashlib.sha256(b"zweave-mixture-1")
    for part, weights in parts:
        hashed.update(f"\n{part.digest} {' '.join(weight.hex() for weight in weights)}".encode())
    return hashed.hexdigest()


def _copy(expert: Expert) -> Expert:
    """A copy whose digest stays true whatever the caller does to the original's tensors."""
    return replace(expert, z={module: z.detach().cpu().clone() for module, z in expert.z.items()})


def __getattr__(name: str) -> object:
    """The old name of ResolvedMixture."""
    if name == "BoundMixture":
        warnings.warn("BoundMixture is now ResolvedMixture", DeprecationWarning, stacklevel=2)
        return ResolvedMixture
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
