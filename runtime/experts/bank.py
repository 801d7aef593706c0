"""The bank: registered experts, and the slots of those in use."""

import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from threading import RLock

import torch
from torch import Tensor

from ..adapters.component_pool import ComponentPool
from ..adapters.compression.compressed_file import is_compressed
from ..adapters.lora import Lora
from ..adapters.peft_directory import lora_directory
from ..checkpoint.module_name import layer_of
from ..errors import ZweaveError
from ..planner.plan import Plan
from ..step_turns import StepTurns
from .byte_cache import ByteCache
from .expert import Expert
from .expert_entry import ExpertEntry
from .lora_entry import LoraEntry
from .lora_store import LoraStore
from .mixture import BASE_DIGEST, Mixture, check_name, mix_z
from .registry import Registry
from .resolved_mixture import Entry, ResolvedMixture, rows_digest
from .row_holders import RowHolders
from .slot_rows import SlotRows
from .slot_tables import SlotTables

# Memory for the rows of experts that have no slot: of some hundred experts of a small model.
PREPARED_BYTES = 256 << 20
_MAX_PREPARED = 1024


class BankFullError(ZweaveError):
    """Every slot of the bank is in use: a release frees one."""


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
    turns: of the steps that read them, and of loads beside these.
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
        scales: Mapping[str, Tensor] | None = None,
    ) -> None:
        if slots < 2:
            raise ZweaveError(f"a bank needs at least 2 slots (one is the base model's), not {slots}")
        self._slots = slots
        self._num_layers = 1 + max((layer_of(module) for module in sigmas), default=-1)
        self._base_digest = base_digest
        self.tables = SlotTables(sigmas, slots, device, plan, max_error, scales)
        self._registry = Registry(self._num_layers)
        self._free = list(range(slots - 1, 0, -1))
        self._slot_of: dict[str, int] = {BASE_DIGEST: 0}
        self._digest_of: dict[int, str] = {0: BASE_DIGEST}
        self._ref_counts: dict[int, int] = {}
        self._unreferenced: OrderedDict[int, None] = OrderedDict()
        self._holders = RowHolders()
        self._prepared: ByteCache[SlotRows] = ByteCache(PREPARED_BYTES, _MAX_PREPARED)
        self._lock = RLock()
        self.turns = StepTurns()
        self._loras = LoraStore(components, self._lock, self.turns)

    @property
    def components(self) -> ComponentPool | None:
        """The pages of LoRAs."""
        return self._loras.pool

    @property
    def first_layers(self) -> tuple[int, ...]:
        """The first layers above 0 of registered experts, ascending."""
        return self._registry.first_layers

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
            entry: Entry = self._loras.load(name, lora)
        else:
            assert not isinstance(expert, Lora)
            entry = ExpertEntry.of(name, expert, self.tables.layout, self._base_digest)
        return self._register(entry)

    def load_adapters(self, path: str | PathLike[str]) -> list[Entry]:
        """Registers all adapters of a file of compressed LoRAs under their own names, as `load` does; or none.

        Raises ZweaveError as `load` does.
        """
        entries = self._loras.load_file(Path(path), self._base_digest)
        return [self._register(entry) for entry in entries]

    def _register(self, entry: Entry) -> Entry:
        """Makes an entry known by its name; it is returned with what was worked out for its rows."""
        digest = rows_digest([entry], entry.digest)
        with self._lock:
            rows = self._prepared.get(digest)
        # What its first request would wait for. An expert that this plan refuses is told to whoever asks for it.
        with suppress(ZweaveError):
            rows = rows or self.tables.rows_of(entry.read_z(self.tables.layout), entry.renormalise)
            if isinstance(entry, ExpertEntry) and self.tables.may_write_z(entry.renormalise):
                entry = replace(entry, modes=rows.modes)
        with self._lock:
            self._registry.add(entry)
            if rows is not None:
                self._prepared.put(digest, rows)
        return entry

    def unload(self, name: str) -> None:
        """Forgets a name at once; slots in use stay until they are released."""
        with self._lock:
            self._registry.remove(name)

    def experts(self) -> list[str]:
        """Names of the registered experts, in the order of their first loading."""
        with self._lock:
            return list(self._registry.entries)

    def __contains__(self, name: str) -> bool:
        """Whether an expert of this name is registered."""
        return name in self._registry.entries

    def entries(self) -> list[Entry]:
        """The registered experts, in the same order."""
        with self._lock:
            return list(self._registry.entries.values())

    def registered(self, name: str) -> Entry:
        """The entry of a registered expert; ZweaveError if there is none of that name."""
        with self._lock:
            return self._registry.find(name)

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
        resolved = self.look_up(mixture)
        self._hold_rows(resolved)
        return resolved

    def look_up(self, mixture: Mixture | None) -> ResolvedMixture:
        """Like `resolve`, without a look at any file: enough to know whether there is such a mixture."""
        if mixture is None:
            return ResolvedMixture.base(self._num_layers)
        with self._lock:
            found = [self._registry.find(name) for name in mixture.names]
        self._loras.check(found)
        return ResolvedMixture.of(mixture, found, self._num_layers)

    def unread(self, mixture: Mixture | None) -> list[LoraEntry]:
        """LoRAs of a mixture whose components are neither resident nor ready to be: `prepare` reads them."""
        known = self._registry.entries
        with self._lock:
            return self._loras.unread(
                known[name] for name in (mixture.names if mixture else ()) if name in known
            )

    def prepare(self, loras: Iterable[LoraEntry]) -> None:
        """Reads LoRAs, so that whoever acquires them need not; ZweaveError as `acquire` raises it."""
        for lora in loras:
            self._loras.prepare(lora)

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
                if not self._make_room(resolved):
                    return None
                slot = self._fill_slot(resolved)
                self._loras.assign(slot, resolved.parts)
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
        self._loras.release(slot)

    def _make_room(self, resolved: ResolvedMixture) -> bool:
        """Makes LoRAs resident, at the cost of unreferenced slots; False if referenced ones hold the room."""
        while not self._loras.place(resolved.parts):
            slot = next(filter(self._loras.holds, self._unreferenced), None)
            if slot is None:
                return False
            del self._unreferenced[slot]
            self._clear(slot)
            self._free.append(slot)
        return True

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


def __getattr__(name: str) -> object:
    """The old name of ResolvedMixture."""
    if name == "BoundMixture":
        warnings.warn("BoundMixture is now ResolvedMixture", DeprecationWarning, stacklevel=2)
        return ResolvedMixture
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
