"""Resident components of LoRAs: a bounded pool of pages that all linears share, and which slot has which.

An adapter takes the same pages in every matrix, as many as its largest rank wants, so that one list says for all
matrices where a slot's components are; in a matrix that it does not adapt they have a scale of zero. Adapters stay
until another one wants their pages, least recently used first; those that a slot has are never taken.

A basis that many adapters share is resident as one adapter is; each of them scales its components in its own way.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zweave.kernels import PAGE, ComponentMemory, ComponentPages, pack_components

from ..checkpoint.module_name import layer_of
from ..errors import ZweaveError
from ..step_turns import rest
from .lora import Lora

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, eq=False)
class PackedLora:
    """A LoRA in kernel order, alpha / r among its numbers; zero beyond the ranks of its matrices.

    digest: of the LoRA.
    modules: the adapted matrices, in the LoRA's order.
    components: [pages, ...], of these in the model's order, see `pack_components`.
    """

    digest: str
    modules: Sequence[str]
    components: Tensor

    @property
    def pages(self) -> int:
        """That it wants."""
        return len(self.components)

    @property
    def nbytes(self) -> int:
        return self.components.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """An adapter of a slot: itself, resident, or a basis that it shares with others.

    basis: digest of what is resident.
    weights: of the adapter, one a layer.
    scales: of the basis' components [matrices, components], in the order of its parts; None for 1 everywhere.
    """

    basis: str
    weights: Sequence[float]
    scales: Tensor | None = None


def pages_of_rank(rank: int) -> int:
    """Pages that an adapter takes."""
    return -(-rank // PAGE)


@dataclass(frozen=True, slots=True)
class ComponentOrder:
    """How components lie where they are read.

    dtype: of the model's activations.
    device: of the pages.
    for_cpu: whether a CPU's kernels read them, in an order of their own.
    """

    dtype: torch.dtype
    device: torch.device = _CPU
    for_cpu: bool = True


@dataclass(slots=True)
class _Resident:
    """pages: that an adapter has; index, layers: of the matrices that it adapts; holders: slots that have it."""

    pages: list[int]
    index: Tensor
    layers: list[int]
    holders: int = 0


def pool_bytes(shapes: Iterable[tuple[int, int]], components: int, value_bytes: int) -> int:
    """Bytes of a pool's pages once all are written.

    shapes: (out_features, in_features) of the adaptable matrices.
    """
    return sum(M + N for M, N in shapes) * (components // PAGE * PAGE) * value_bytes


class ComponentPool:
    """Assigns pages to adapters, and adapters to slots. Not thread-safe, but for `packed`: the bank's lock covers it.

    shapes: adaptable matrix -> (out_features, in_features), in layer order.
    components: that stay resident, rounded down to whole pages; on a CPU memory is taken as they are written.
    slots: number of slots, the base model's included.
    order: of the kernels that read them.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, int]], components: int, slots: int, order: ComponentOrder
    ) -> None:
        self.shapes = dict(shapes)
        self.order = order
        self.num_pages = components // PAGE
        self._scale = torch.zeros(len(shapes), slots, self.num_pages * PAGE, device=order.device)
        self._pages_of = torch.full((slots, self.num_pages), -1, dtype=torch.int32)
        self._index = {module: index for index, module in enumerate(shapes)}
        self._adapted = torch.zeros(len(self._index), slots, dtype=torch.uint8)
        self._memory = ComponentMemory.zeros(
            [*shapes.values()],
            self.num_pages,
            order.dtype,
            self._scale,
            self._pages_of,
            self._adapted,
            in_panels=order.for_cpu,
        )
        self._free = list(range(self.num_pages - 1, -1, -1))
        self._unfinished: list[list[int]] = []
        self._resident: OrderedDict[str, _Resident] = OrderedDict()
        self._held: dict[int, tuple[str, ...]] = {}

    def linear(self, module: str) -> ComponentPages:
        """The pages of a matrix, which its linear reads."""
        return self._memory.linears[self._index[module]]

    def pages_of(self, slots: Sequence[int]) -> list[int]:
        """The pages of some slots, ascending, each once."""
        held = [slot for slot in slots if slot in self._held]
        return sorted({*self._pages_of[held].flatten().tolist()} - {-1}) if held else []

    def check(self, ranks: Iterable[int]) -> None:
        """Raises ZweaveError if adapters of these ranks are larger than the pool together."""
        total = sum(map(pages_of_rank, ranks))
        if total > self.num_pages:
            raise ZweaveError(
                f"the adapters have {total * PAGE} components and the engine keeps {self.num_pages * PAGE}: "
                "give it more lora_components"
            )

    def is_resident(self, digest: str) -> bool:
        return digest in self._resident

    def packed(self, lora: Lora, digest: str) -> PackedLora:
        """A LoRA ready to be written, still on the host; for a GPU where it can copy from. From any thread.

        digest: of the LoRA.
        """
        pairs = [lora.pairs[module] for module in sorted(lora.pairs, key=self._index.__getitem__)]
        components = pack_components(
            [pair.a for pair in pairs],
            [pair.b for pair in pairs],
            [pair.scaling for pair in pairs],
            self.order.dtype,
            self.order.for_cpu,
            rest,
        )
        pinned = not self.order.for_cpu and self.order.device.type == "cuda"
        return PackedLora(digest, [*lora.pairs], components.pin_memory() if pinned else components)

    def holds(self, slot: int) -> bool:
        """Whether a slot has adapters."""
        return slot in self._held

    def place(self, adapters: Sequence[PackedLora], keep: Iterable[str] = ()) -> bool:
        """Makes adapters resident that are not; False, and nothing is changed, if slots hold too many pages.

        keep: digests of others that must not go for them.
        """
        wanted = {adapter.digest for adapter in adapters} | {*keep}
        missing = [adapter for adapter in adapters if adapter.digest not in self._resident]
        idle = [
            digest
            for digest, resident in self._resident.items()
            if not resident.holders and digest not in wanted
        ]
        need = sum(adapter.pages for adapter in missing)
        held = sum(len(self._resident[digest].pages) for digest in self._resident.keys() - {*idle})
        if need > self.num_pages - held:
            return False
        if need > len(self._free):
            self._free.extend(page for pages in self._unfinished for page in pages)
            self._unfinished.clear()
        while need > len(self._free):
            self._free.extend(self._resident.pop(idle.pop(0)).pages)
        for adapter in missing:
            for _ in self._write(adapter):
                pass
        return True

    def place_gradually(self, adapter: PackedLora) -> Iterator[None]:
        """Makes an adapter resident on pages that nobody has, or leaves it if there are not enough.

        Yields between pieces of the work, each of which wants the lock. `place` may take the pages away meanwhile;
        then it ends.
        """
        if adapter.digest not in self._resident and adapter.pages <= len(self._free):
            yield from self._write(adapter)

    def assign(self, slot: int, shares: Sequence[Share]) -> None:
        """Gives a slot that has none its adapters, all resident; those that share a basis add up."""
        assert slot not in self._held
        held = tuple(dict.fromkeys(share.basis for share in shares))
        pages = [page for digest in held for page in self._resident[digest].pages]
        row = torch.zeros(len(self._index), self.num_pages * PAGE)
        for digest in held:
            self._resident[digest].holders += 1
            self._resident.move_to_end(digest)
        for share in shares:
            resident = self._resident[share.basis]
            columns = torch.tensor([page * PAGE + i for page in resident.pages for i in range(PAGE)])
            each = torch.tensor([share.weights[layer] for layer in resident.layers], dtype=torch.float32)
            scales = torch.ones(1, len(columns)) if share.scales is None else share.scales
            row[resident.index[:, None], columns[: scales.shape[1]]] += each[:, None] * scales
            self._adapted[resident.index, slot] |= scales.any(1)
        # Of a device in the order of what was launched, without waiting.
        self._scale[:, slot].copy_(row.pin_memory() if self._scale.is_cuda else row, non_blocking=True)
        self._pages_of[slot, : len(pages)] = torch.tensor(sorted(pages), dtype=torch.int32)
        self._held[slot] = held

    def release(self, slot: int) -> None:
        """Takes a slot's adapters away, if it has any; they stay resident until others want their pages."""
        for digest in self._held.pop(slot, ()):
            self._resident[digest].holders -= 1
        self._scale[:, slot] = 0
        self._pages_of[slot] = -1
        self._adapted[:, slot] = 0

    def _write(self, adapter: PackedLora) -> Iterator[None]:
        """Writes an adapter to free pages; neighbours where there are. Yields between pieces of the work."""
        self._free.sort(reverse=True)
        pages = sorted(self._free.pop() for _ in range(adapter.pages))
        self._unfinished.append(pages)
        index = torch.tensor([self._index[module] for module in adapter.modules])
        for _ in self._memory.write(pages, sorted(index.tolist()), adapter.components):
            yield
            if all(pages is not unfinished for unfinished in self._unfinished):
                return
        self._unfinished = [unfinished for unfinished in self._unfinished if unfinished is not pages]
        if adapter.digest in self._resident:
            self._free.extend(pages)
        else:
            self._resident[adapter.digest] = _Resident(pages, index, [*map(layer_of, adapter.modules)])
