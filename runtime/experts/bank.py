"""The bank: registered experts, and the slots of those in use."""

import hashlib
import warnings
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from heapq import nsmallest
from os import PathLike
from pathlib import Path
from threading import RLock
from typing import TypeAlias

import torch
from torch import Tensor

from ..adapters.component_pool import ComponentOrder, ComponentPool, PackedLora, Share
from ..adapters.compression.compressed_file import is_compressed, load_compressed
from ..adapters.lora import Lora
from ..adapters.peft_directory import lora_directory
from ..checkpoint.module_name import layer_of
from ..errors import ZweaveError
from ..planner.plan import Plan
from ..text.prompt_template import PromptTemplate
from .byte_cache import ByteCache
from .expert import Expert, Scope
from .expert_entry import ExpertEntry
from .lora_entry import LoraEntry, compressed_entries
from .mixture import BASE_DIGEST, Mixture, check_name, check_same_kind, common_template, mix_z
from .row_holders import RowHolders
from .slot_rows import SlotRows
from .slot_tables import SlotTables

# Memory for the rows of experts that have no slot: of some hundred experts of a small model.
PREPARED_BYTES = 256 << 20
_MAX_PREPARED = 1024
# Memory for components of LoRAs that are not resident, ready to be written: of a hundred of rank 16 for a small model.
PACKED_BYTES = 1 << 30
# Names that an unknown one is compared with: more would hold up who asks.
_MAX_COMPARED = 1000


# What a name stands for.
Entry: TypeAlias = ExpertEntry | LoraEntry
Part: TypeAlias = tuple[Entry, tuple[float, ...]]


class BankFullError(ZweaveError):
    """Every slot of the bank is in use: a release frees one."""


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
        return _rows_digest([part for part, _ in self.parts], self.digest)


class Bank:
    """Registers experts and assigns the slots of `tables` to the experts and mixtures in use.

    Any number of experts may be registered; only those given as `Expert` stay in memory, others are read from their
    file when they need a slot. The rows of the latest are kept prepared, so that a slot is written at once. Slots are
    keyed by digest, so equal mixtures share one. `acquire` increments a slot's ref count and `release` decrements it;
    an unreferenced slot is evicted when another mixture needs one, least recently used first. Slot 0 is the base
    model's. All methods may be called from any thread.

    base_digest: of the model's weights; experts for other weights are refused.
    components: the pool that LoRAs take pages of; None refuses LoRAs.
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
        components: ComponentPool | None = None,
    ) -> None:
        if slots < 2:
            raise ZweaveError(f"a bank needs at least 2 slots (one is the base model's), not {slots}")
        self._slots = slots
        self._num_layers = 1 + max((layer_of(module) for module in sigmas), default=-1)
        self._base_digest = base_digest
        self.tables = SlotTables(sigmas, slots, device, plan, max_error)
        self._experts: dict[str, Entry] = {}
        self.first_layers: tuple[int, ...] = ()
        self._first_layer_counts: Counter[int] = Counter()
        self._free = list(range(slots - 1, 0, -1))
        self._slot_of: dict[str, int] = {BASE_DIGEST: 0}
        self._digest_of: dict[int, str] = {0: BASE_DIGEST}
        self._ref_counts: dict[int, int] = {}
        self._unreferenced: OrderedDict[int, None] = OrderedDict()
        self._holders = RowHolders()
        self.components = components
        self._prepared: ByteCache[SlotRows] = ByteCache(PREPARED_BYTES, _MAX_PREPARED)
        self._packed: ByteCache[PackedLora] = ByteCache(PACKED_BYTES, _MAX_PREPARED)
        self._lock = RLock()

    @property
    def num_slots(self) -> int:
        """Slots, the base model's included."""
        return self._slots

    @property
    def slots_in_use(self) -> int:
        """Slots that somebody has acquired, the base model's left out."""
        with self._lock:
            return len(self._ref_counts)

    def digest_of(self, slot: int) -> str:
        """Digest of the mixture that holds a slot, "" for a free slot."""
        with self._lock:
            return self._digest_of.get(slot, "")

    def load(self, name: str, expert: str | PathLike[str] | Expert | Lora) -> Entry:
        """Registers an expert or a LoRA under a name; mixtures that were resolved earlier keep what they found.

        expert: an expert, its file, or the name of one that comes with zweave; a LoRA, or a directory of PEFT's.
        Raises ZweaveError if the name cannot be one, or what it stands for does not fit the model.
        """
        check_name(name)
        if is_compressed(expert):
            raise ZweaveError(
                f"{expert} holds compressed LoRAs, each with a name of its own: load them all, "
                "by Engine.load_adapters(FILE) or --load FILE"
            )
        lora = expert if isinstance(expert, Lora) else lora_directory(expert)
        if lora is not None:
            entry: Entry = self._load_lora(name, lora)
        else:
            assert not isinstance(expert, Lora)
            entry = ExpertEntry.of(name, expert, self.tables.layout, self._base_digest)
        return self._register(entry)

    def load_adapters(self, path: str | PathLike[str]) -> list[Entry]:
        """Registers all adapters of a file of compressed LoRAs under their own names, as `load` does; or none.

        Raises ZweaveError as `load` does.
        """
        path = Path(path)
        pool = self._pool_for(path)
        compressed = load_compressed(path)
        entries: list[LoraEntry] = []
        try:
            compressed.check(pool.shapes, self._base_digest)
            for adapter in compressed.adapters:
                check_name(adapter.name)
            for entry, basis in compressed_entries(compressed, path):
                pool.check([entry.rank])
                self._keep_packed(pool, entry, basis)
                entries.append(entry)
        except ZweaveError as error:
            raise ZweaveError(f"{path}: {error}") from None
        return [self._register(entry) for entry in entries]

    def _register(self, entry: Entry) -> Entry:
        """Makes an entry known by its name; it is returned with what was worked out for its rows."""
        digest = _rows_digest([entry], entry.digest)
        with self._lock:
            rows = self._prepared.get(digest)
        # What its first request would wait for. An expert that this plan refuses is told to whoever asks for it.
        with suppress(ZweaveError):
            rows = rows or self.tables.rows_of(entry.read_z(self.tables.layout), entry.renormalise)
            if isinstance(entry, ExpertEntry) and self.tables.may_write_z(entry.renormalise):
                entry = replace(entry, modes=rows.modes)
        with self._lock:
            self._note_first_layers(self._experts.get(entry.name), entry)
            self._experts[entry.name] = entry
            if rows is not None:
                self._prepared.put(digest, rows)
        return entry

    def _load_lora(self, name: str, source: Lora | Path) -> LoraEntry:
        """The entry of a LoRA, whose components are resident already if there is room that nobody asks for."""
        pool = self._pool_for(name)
        entry, lora = LoraEntry.of(name, source, pool.shapes)
        pool.check([entry.rank])
        self._keep_packed(pool, entry, lora)
        return entry

    def _pool_for(self, name: object) -> ComponentPool:
        if self.components is None:
            raise ZweaveError(
                f"{str(name)!r} is a LoRA, and this engine keeps no components of LoRAs: give it lora_components "
                "(--lora-components), 512 for 32 adapters of rank 16"
            )
        return self.components

    def _keep_packed(self, pool: ComponentPool, entry: LoraEntry, basis: Lora) -> None:
        """Keeps a basis ready to be written, and writes it if there is room that nobody asks for."""
        with self._lock:
            packed = self._packed.get(entry.basis)
        packed = packed or PackedLora.of(basis, entry.basis, pool.order)
        with self._lock:
            self._packed.put(entry.basis, packed)
            # A device is written to by the engine's thread alone, which may be capturing a graph.
            if pool.order.device.type == "cpu" and pool.has_free(packed):
                pool.place([packed])

    def unload(self, name: str) -> None:
        """Forgets a name at once; slots in use stay until they are released."""
        with self._lock:
            self._note_first_layers(self._find(name), None)
            del self._experts[name]

    def experts(self) -> list[str]:
        """Names of the registered experts, in the order of their first loading."""
        with self._lock:
            return list(self._experts)

    def __contains__(self, name: str) -> bool:
        """Whether an expert of this name is registered."""
        return name in self._experts

    def entries(self) -> list[Entry]:
        """The registered experts, in the same order."""
        with self._lock:
            return list(self._experts.values())

    def registered(self, name: str) -> Entry:
        """The entry of a registered expert; ZweaveError if there is none of that name."""
        with self._lock:
            return self._find(name)

    def expert(self, name: str) -> Expert:
        """A registered expert; ZweaveError if there is none of that name, it is a LoRA, or its file was changed."""
        entry = self.registered(name)
        if isinstance(entry, LoraEntry):
            raise ZweaveError(f"{name!r} is a LoRA, and this wants an expert: its z")
        return entry.read()

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
        invocation_tokens = _common_invocation(found)
        if self.components is not None:
            self.components.check({p.basis: p.rank for p in found if isinstance(p, LoraEntry)}.values())
        # The same content under two names is one expert with the sum of the weights.
        merged: dict[str, Part] = {}
        for part, weights in zip(found, mixture.weights(self._num_layers), strict=True):
            if part.digest in merged:
                weights = tuple(a + b for a, b in zip(merged[part.digest][1], weights, strict=True))
            merged[part.digest] = (part, weights)
        parts = tuple(merged[digest] for digest in sorted(merged))
        resolved = ResolvedMixture(
            _digest(parts),
            found[0].scope,
            min(part.first_layer for part in found),
            parts,
            common_template(part.prompt_template for part in found),
            invocation_tokens,
        )
        self._hold_rows(resolved)
        return resolved

    def unread(self, mixture: Mixture | None) -> list[LoraEntry]:
        """LoRAs of a mixture whose components are neither resident nor ready to be: `prepare` reads them."""
        with self._lock:
            found = [self._experts.get(name) for name in (mixture.names if mixture else ())]
            return [
                part
                for part in found
                if isinstance(part, LoraEntry)
                and self.components is not None
                and not self.components.is_resident(part.basis)
                and self._packed.get(part.basis) is None
            ]

    def prepare(self, loras: Iterable[LoraEntry]) -> None:
        """Reads LoRAs, so that whoever acquires them need not; ZweaveError as `acquire` raises it."""
        for lora in loras:
            assert self.components is not None
            packed = PackedLora.of(lora.read(), lora.basis, self.components.order)
            with self._lock:
                self._packed.put(lora.basis, packed)

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
                loras = [(part, weights) for part, weights in resolved.parts if isinstance(part, LoraEntry)]
                if not self._place(loras):
                    return None
                slot = self._fill_slot(resolved)
                if self.components is not None:
                    self.components.assign(
                        slot, [Share(part.basis, weights, part.scales) for part, weights in loras]
                    )
                self._slot_of[resolved.digest] = slot
                self._digest_of[slot] = resolved.digest
            self._holders.add(slot, resolved)
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

    def _note_first_layers(self, gone: Entry | None, new: Entry | None) -> None:
        """Keeps `first_layers` true when an entry goes and another comes, however many there are."""
        counts = self._first_layer_counts
        for entry, by in ((gone, -1), (new, 1)):
            if entry is not None:
                counts[entry.first_layer] += by
        self.first_layers = tuple(
            sorted(layer for layer, count in counts.items() if count and 0 < layer < self._num_layers)
        )

    def _find(self, name: str) -> Entry:
        if name in self._experts:
            return self._experts[name]
        few = len(self._experts) <= _MAX_COMPARED
        close = get_close_matches(name, self._experts, n=3) if few else []
        if close:
            hint = f"did you mean {' or '.join(map(repr, close))}?"
        elif self._experts:
            rest = f" and {len(self._experts) - 8} more" if len(self._experts) > 8 else ""
            hint = f"loaded: {', '.join(nsmallest(8, self._experts))}{rest}"
        else:
            hint = "none is loaded"
        raise ZweaveError(f"there is no expert {name!r}: {hint}")

    def _take_slot(self) -> int:
        if self._free:
            return self._free.pop()
        slot, _ = self._unreferenced.popitem(last=False)
        self._clear(slot)
        return slot

    def _clear(self, slot: int) -> None:
        """Forgets what an unreferenced slot holds."""
        self._holders.evict(slot, lambda: self.tables.rows_in(slot))
        del self._slot_of[self._digest_of.pop(slot)]
        if self.components is not None:
            self.components.release(slot)

    def _place(self, loras: Sequence[tuple[LoraEntry, tuple[float, ...]]]) -> bool:
        """Makes LoRAs' bases resident, at the cost of unreferenced slots; False if referenced ones hold the room."""
        pool = self.components
        if not loras or pool is None:
            return True
        packed = [
            self._packed_of(part, pool.order) for part in {part.basis: part for part, _ in loras}.values()
        ]
        while not pool.place(packed):
            slot = next((slot for slot in self._unreferenced if pool.holds(slot)), None)
            if slot is None:
                return False
            del self._unreferenced[slot]
            self._clear(slot)
            self._free.append(slot)
        return True

    def _packed_of(self, entry: LoraEntry, order: ComponentOrder) -> PackedLora:
        packed = self._packed.get(entry.basis)
        if packed is None:
            packed = PackedLora.of(entry.read(), entry.basis, order)
            self._packed.put(entry.basis, packed)
        return packed

    def _fill_slot(self, resolved: ResolvedMixture) -> int:
        """Writes the rows of a mixture to a slot that is taken for it."""
        self._hold_rows(resolved)
        first = resolved.parts[0][0]
        # About as fast as a copy of prepared rows, so that these are not worth their memory.
        by_z = not resolved.held and resolved.digest == first.digest and first.modes is not None
        if not resolved.held and not by_z:
            rows = self._new_rows(resolved)
            self._prepared.put(resolved.rows_digest, rows)
            resolved.held.append(rows)
        slot = self._take_slot()
        if not by_z:
            self.tables.write(slot, resolved.held[0])
            return slot
        assert first.modes is not None
        try:
            written = self.tables.write_z(slot, partial(first.read_z, self.tables.layout), first.modes)
        except ZweaveError:
            self._free.append(slot)
            raise
        if written is not None:
            resolved.held.append(written)
        return slot

    def _hold_rows(self, resolved: ResolvedMixture) -> None:
        """Gives a mixture the prepared rows, if there are such and its files look as they did."""
        with self._lock:
            rows = None if resolved.held else self._prepared.get(resolved.rows_digest)
        if rows is not None and all(part.is_unchanged for part, _ in resolved.parts):
            resolved.held.append(rows)

    def _new_rows(self, resolved: ResolvedMixture) -> SlotRows:
        layout, first = self.tables.layout, resolved.parts[0][0]
        parts = [part.read_z(layout) for part, _ in resolved.parts]
        if resolved.digest == first.digest:
            return self.tables.rows_of(parts[0], first.renormalise)
        z = mix_z([part.by_module(layout) for part in parts], [weights for _, weights in resolved.parts])
        return self.tables.rows_of(z, first.renormalise)


def _common_invocation(parts: Sequence[Entry]) -> tuple[int, ...]:
    """What activates all parts of a mixture; ZweaveError if they differ."""
    first = parts[0]
    for part in parts[1:]:
        if part.invocation_tokens != first.invocation_tokens:
            raise ZweaveError(
                f"{first.name!r} and {part.name!r} cannot be mixed: they are activated by different tokens"
            )
    return first.invocation_tokens


def _rows_digest(entries: Sequence[Entry], digest: str) -> str:
    """Digest of what a mixture's rows follow from, given its own: LoRAs leave z = 1, all alike."""
    return "z = 1" if all(isinstance(entry, LoraEntry) for entry in entries) else digest


def _digest(parts: tuple[Part, ...]) -> str:
    if len(parts) == 1 and set(parts[0][1]) == {1.0}:
        return parts[0][0].digest
    hashed = hashlib.sha256(b"zweave-mixture-1")
    for part, weights in parts:
        hashed.update(f"\n{part.digest} {' '.join(weight.hex() for weight in weights)}".encode())
    return hashed.hexdigest()


def __getattr__(name: str) -> object:
    """The old name of ResolvedMixture."""
    if name == "BoundMixture":
        warnings.warn("BoundMixture is now ResolvedMixture", DeprecationWarning, stacklevel=2)
        return ResolvedMixture
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
