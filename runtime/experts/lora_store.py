"""The LoRAs of a bank: ready to be written in memory, and resident in pages while slots want them."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from threading import RLock

from ..adapters.component_pool import ComponentPool, PackedLora, Share
from ..adapters.compression.compressed_file import load_compressed
from ..adapters.lora import Lora
from ..errors import ZweaveError
from ..step_turns import StepTurns, rest
from .byte_cache import ByteCache
from .lora_entry import LoraEntry, compressed_entries
from .mixture import check_new_name
from .resolved_mixture import Entry, Part

# Memory for components that are not resident, ready to be written: of a hundred LoRAs of rank 16 for a small model.
PACKED_BYTES = 1 << 30
_MAX_PACKED = 1024


class LoraStore:
    """Reads LoRAs, and gives slots their components.

    What it keeps by the digest of a basis is shared by all LoRAs over that basis; a LoRA of PEFT's is its own.

    pool: whose pages they take; None refuses LoRAs.
    lock: of the bank.
    turns: with the engine's steps.
    """

    def __init__(self, pool: ComponentPool | None, lock: RLock, turns: StepTurns) -> None:
        self.pool = pool
        self._turns = turns
        self._lock = lock
        self._packed: ByteCache[PackedLora] = ByteCache(PACKED_BYTES, _MAX_PACKED)

    def load(self, name: str, source: Lora | Path) -> LoraEntry:
        """The entry of a LoRA or its directory; ZweaveError if it does not fit the model or the pool."""
        pool = self._pool_for(name)
        with self._turns.beside():
            entry, lora = LoraEntry.of(name, source, pool.shapes)
            pool.check([entry.rank])
            self._keep(pool, entry, lora)
        return entry

    def load_file(self, path: Path, base_digest: str | None) -> list[LoraEntry]:
        """The entries of a file of compressed LoRAs; ZweaveError as `load` raises it."""
        pool = self._pool_for(path)
        with self._turns.beside():
            compressed = load_compressed(path)
            entries = []
            try:
                compressed.check(pool.shapes, base_digest)
                for adapter in compressed.adapters:
                    check_new_name(adapter.name)
                for entry, basis in compressed_entries(compressed, path):
                    pool.check([entry.rank])
                    self._keep(pool, entry, basis)
                    entries.append(entry)
            except ZweaveError as error:
                raise ZweaveError(f"{path}: {error}") from None
            return entries

    def check(self, found: Iterable[Entry]) -> None:
        """Raises ZweaveError if the LoRAs among the parts of a mixture do not fit the pool together."""
        if self.pool is not None:
            self.pool.check({part.basis: part.rank for part in found if isinstance(part, LoraEntry)}.values())

    def unread(self, found: Iterable[Entry]) -> list[LoraEntry]:
        """The LoRAs among entries whose components are neither resident nor ready to be."""
        pool = self.pool
        return [
            part
            for part in found
            if isinstance(part, LoraEntry)
            and pool is not None
            and not pool.is_resident(part.basis)
            and self._packed.get(part.basis) is None
        ]

    def prepare(self, lora: LoraEntry) -> None:
        """Makes a LoRA's basis ready to be written, beside steps; ZweaveError if its file is gone or was changed."""
        assert self.pool is not None
        with self._turns.beside():
            self._packed_of(self.pool, lora, lora.read_basis)

    def place(self, parts: Sequence[Part]) -> bool:
        """Makes the LoRAs of a mixture resident; False if slots hold too much of the room."""
        pool, loras = self.pool, {part.basis: part for part, _ in parts if isinstance(part, LoraEntry)}
        if pool is None:
            return True
        missing = [
            self._packed_of(pool, lora, lora.read_basis)
            for basis, lora in loras.items()
            if not pool.is_resident(basis)
        ]
        return pool.place(missing, keep=loras)

    def assign(self, slot: int, parts: Sequence[Part]) -> None:
        """Gives a slot the LoRAs of a mixture, all resident."""
        if self.pool is not None:
            loras = [(part, weights) for part, weights in parts if isinstance(part, LoraEntry)]
            self.pool.assign(slot, [Share(part.basis, weights, part.scales) for part, weights in loras])

    def release(self, slot: int) -> None:
        """Takes a slot's LoRAs away."""
        if self.pool is not None:
            self.pool.release(slot)

    def holds(self, slot: int) -> bool:
        """Whether a slot has LoRAs."""
        return self.pool is not None and self.pool.holds(slot)

    def _pool_for(self, name: object) -> ComponentPool:
        if self.pool is None:
            raise ZweaveError(
                f"{str(name)!r} is a LoRA, and this engine keeps no components of LoRAs: give it lora_components "
                "(--lora-components), 512 for 32 adapters of rank 16"
            )
        return self.pool

    def _keep(self, pool: ComponentPool, entry: LoraEntry, basis: Lora) -> None:
        """Keeps a basis ready to be written, and writes it if there is room that nobody asks for."""
        packed = self._packed_of(pool, entry, lambda: basis)
        # A device is written to by the engine's thread alone, which may be capturing a graph.
        if pool.order.device.type != "cpu":
            return
        pieces = pool.place_gradually(packed)
        is_done: bool | None = False
        while not is_done:
            rest()
            with self._lock:
                is_done = next(pieces, True)

    def _packed_of(self, pool: ComponentPool, entry: LoraEntry, basis: Callable[[], Lora]) -> PackedLora:
        """A basis ready to be written: the one that is kept, or else made and kept. From any thread."""
        with self._lock:
            packed = self._packed.get(entry.basis)
        if packed is None:
            packed = pool.packed(basis(), entry.basis)
            with self._lock:
                self._packed.put(entry.basis, packed)
        return packed
