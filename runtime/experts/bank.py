"""The bank: registered experts, and which of them have slots."""

import hashlib
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
from .expert import Expert, Scope
from .mixture import BASE_DIGEST, Mixture, check_name, check_same_kind, mix_experts
from .slot_tables import SlotRows, SlotTables


class BankFullError(ZweaveError):
    """Every slot of the bank is in use: wait for a release."""


@dataclass(frozen=True, slots=True, eq=False)
class Registered:
    """A registered expert: what is known of it without its z, and where these are.

    path: its file, read again when a slot needs it; None if `expert` is kept in memory.
    """

    name: str
    digest: str
    scope: Scope
    first_layer: int
    renormalise: bool
    description: str
    path: Path | None
    expert: Expert | None

    def read(self) -> Expert:
        """The expert; ZweaveError if its file is gone or holds something else by now."""
        if self.expert is not None:
            return self.expert
        assert self.path is not None
        expert = Expert.load(self.path)
        if expert.digest != self.digest:
            raise ZweaveError(f"{self.path} changed since it was loaded as {self.name!r}: load it again")
        return expert


@dataclass(frozen=True, slots=True, eq=False)
class BoundMixture:
    """A mixture whose names have been looked up: it stays the same when names are unloaded or given anew.

    digest: of all that changes what it computes; that of an expert alone is the expert's.
    parts: experts of distinct content, sorted by digest, and their weights, one a layer.
    """

    digest: str
    scope: Scope
    first_layer: int
    parts: tuple[tuple[Registered, tuple[float, ...]], ...]


class Bank:
    """Hands out the slots of `tables` to the experts and mixtures in use, slot 0 being the base's.

    base_digest: of the model's weights; experts for others are refused.
    The other arguments are those of SlotTables.

    Any number of experts may be registered: only those given as `Expert` stay in memory, of the others the
    name and digest do. Rows are found by digest, so equal mixtures share one. `acquire` pins a row and
    `release` frees it; a row that nobody holds stays until its slot is wanted, the longest unused first.
    All methods may be called from any thread.

    first_layers: those above 0 from which on some registered expert acts, ascending.
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
        self._experts: dict[str, Registered] = {}
        self.first_layers: tuple[int, ...] = ()
        self._free = list(range(slots - 1, 0, -1))
        self._slot_of: dict[str, int] = {BASE_DIGEST: 0}
        self._digest_of: dict[int, str] = {0: BASE_DIGEST}
        self._holders: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._lock = RLock()

    def digest_of(self, slot: int) -> str:
        """Digest of the mixture whose row a slot holds, "" if it holds none."""
        with self._lock:
            return self._digest_of.get(slot, "")

    def load(self, name: str, expert: str | PathLike[str] | Expert) -> Registered:
        """Registers an expert under a name; requests bound earlier keep what the name meant to them.

        Raises ZweaveError if the name cannot be one, or the file or expert does not fit the model.
        """
        check_name(name)
        path = None if isinstance(expert, Expert) else Path(expert).absolute()
        held = expert if isinstance(expert, Expert) else Expert.load(Path(expert))
        try:
            held.check(self._shapes, self._base_digest)
        except ZweaveError as error:
            raise ZweaveError(f"{path or f'the expert {name!r}'}: {error}") from None
        registered = Registered(
            name=name,
            digest=held.digest,
            scope=held.scope,
            first_layer=held.first_layer,
            renormalise=held.renormalise,
            description=held.description,
            path=path,
            expert=_copy(held) if path is None else None,
        )
        with self._lock:
            self._experts[name] = registered
            self._note_first_layers()
        return registered

    def unload(self, name: str) -> None:
        """Forgets a name at once; rows in use stay until they are released."""
        with self._lock:
            self._find(name)
            del self._experts[name]
            self._note_first_layers()

    def experts(self) -> list[str]:
        """Names of the registered experts, in the order of their first loading."""
        with self._lock:
            return list(self._experts)

    def registered(self, name: str) -> Registered:
        """What is known of a registered expert; ZweaveError if there is none of that name."""
        with self._lock:
            return self._find(name)

    def bind(self, mixture: Mixture | BoundMixture | None) -> BoundMixture:
        """Looks a mixture's names up; None is the base, with digest "base" and no parts.

        Raises ZweaveError if a name is unknown, a per-layer list does not fit the model, or the experts
        disagree on scope or renormalisation.
        """
        if isinstance(mixture, BoundMixture):
            return mixture
        if mixture is None:
            return BoundMixture(BASE_DIGEST, "always", self._num_layers, ())
        with self._lock:
            found = [self._find(name) for name in mixture.names]
        check_same_kind([(part.name, part.scope, part.renormalise) for part in found])
        # The same content under two names is one expert with the sum of the weights.
        merged: dict[str, tuple[Registered, tuple[float, ...]]] = {}
        for part, weights in zip(found, mixture.weights(self._num_layers), strict=True):
            if part.digest in merged:
                weights = tuple(a + b for a, b in zip(merged[part.digest][1], weights, strict=True))
            merged[part.digest] = (part, weights)
        parts = tuple(merged[digest] for digest in sorted(merged))
        return BoundMixture(_digest(parts), found[0].scope, min(part.first_layer for part in found), parts)

    def digest(self, mixture: Mixture | BoundMixture | None) -> str:
        """What the mixture computes, as a key: equal digests give equal rows."""
        return self.bind(mixture).digest

    def scope(self, mixture: Mixture | BoundMixture | None) -> Scope:
        """From which token on the mixture acts; "always" for the base."""
        return self.bind(mixture).scope

    def acquire(self, mixture: Mixture | BoundMixture | None) -> int:
        """Pins the mixture's row and returns its slot, 0 for the base; each call needs a `release`.

        Raises BankFullError if other mixtures hold all slots, ZweaveError as `bind` does, if an expert's file
        is gone or changed, or if the renormalisation would divide by zero.
        """
        slot = self.try_acquire(mixture)
        if slot is None:
            raise BankFullError(
                f"all {self._slots - 1} expert slots are in use: "
                "wait for a request to finish or make the bank larger"
            )
        return slot

    def try_acquire(self, mixture: Mixture | BoundMixture | None) -> int | None:
        """As `acquire`, but None if other mixtures hold all slots."""
        bound = self.bind(mixture)
        if not bound.parts:
            return 0
        with self._lock:
            slot = self._slot_of.get(bound.digest)
            if slot is None:
                if not self._free and not self._idle:
                    return None
                rows = self._rows_of(bound)
                slot = self._take_slot()
                self.tables.write(slot, rows)
                self._slot_of[bound.digest] = slot
                self._digest_of[slot] = bound.digest
            self._idle.pop(slot, None)
            self._holders[slot] = self._holders.get(slot, 0) + 1
            return slot

    def release(self, slot: int) -> None:
        """Gives back one `acquire`; slot 0 needs none and takes any number."""
        if slot == 0:
            return
        with self._lock:
            if slot not in self._holders:
                raise RuntimeError(f"slot {slot} is released and nobody holds it")
            self._holders[slot] -= 1
            if not self._holders[slot]:
                del self._holders[slot]
                self._idle[slot] = None

    def _note_first_layers(self) -> None:
        layers = {expert.first_layer for expert in self._experts.values()}
        self.first_layers = tuple(sorted(layer for layer in layers if 0 < layer < self._num_layers))

    def _find(self, name: str) -> Registered:
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
        slot, _ = self._idle.popitem(last=False)
        del self._slot_of[self._digest_of.pop(slot)]
        return slot

    def _rows_of(self, bound: BoundMixture) -> SlotRows:
        parts = [(part.read(), weights) for part, weights in bound.parts]
        return self.tables.rows(mix_experts([part for part, _ in parts], [weights for _, weights in parts]))


def _digest(parts: tuple[tuple[Registered, tuple[float, ...]], ...]) -> str:
    if len(parts) == 1 and set(parts[0][1]) == {1.0}:
        return parts[0][0].digest
    hashed = hashlib.sha256(b"zweave-mixture-1")
    for part, weights in parts:
        hashed.update(f"\n{part.digest} {' '.join(weight.hex() for weight in weights)}".encode())
    return hashed.hexdigest()


def _copy(expert: Expert) -> Expert:
    """The expert with tensors of its own, so that its digest stays true whatever the caller does to his."""
    return replace(expert, z={module: z.detach().cpu().clone() for module, z in expert.z.items()})
