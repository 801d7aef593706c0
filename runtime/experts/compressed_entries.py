"""The registered adapters of a file of compressed LoRAs."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from ..adapters.compression.compressed import CompressedLoras
from ..adapters.compression.compressed_file import load_compressed
from ..adapters.lora import Lora
from ..checkpoint.module_name import layer_of
from ..errors import ZweaveError
from ..names import CompressionVariant
from ..text.prompt_template import PromptTemplate
from .lora_entry import LoraEntry


@dataclass(frozen=True, slots=True, eq=False)
class _Served:
    """What serves an adapter.

    digest, first_layer: of the adapter.
    number: of its basis in the file: a cluster, or in the full variant the adapter.
    basis, basis_digest: what is resident.
    scales: of that, see `Share.scales`.
    """

    digest: str
    first_layer: int
    number: int
    basis: Lora
    basis_digest: str
    scales: Tensor | None


def compressed_entries(compressed: CompressedLoras, path: Path) -> Iterator[tuple[LoraEntry, Lora]]:
    """The entry of each adapter of a file that was loaded, and its basis."""
    path = path.absolute()
    served = (
        _over_shared_bases(compressed) if compressed.variant == "diagonal" else _multiplied_out(compressed)
    )
    for adapter, found in zip(compressed.adapters, served, strict=True):
        template = adapter.prompt_template
        entry = LoraEntry(
            name=adapter.name,
            digest=found.digest,
            scope=adapter.scope,
            first_layer=found.first_layer,
            description=adapter.description,
            invocation_tokens=adapter.invocation_tokens,
            rank=found.basis.rank,
            basis=found.basis_digest,
            source=partial(_read, path, compressed.variant, found.number),
            path=path,
            scales=found.scales,
            prompt_template=PromptTemplate.from_json(template) if template else None,
        )
        yield entry, found.basis


def _over_shared_bases(compressed: CompressedLoras) -> Iterator[_Served]:
    numbers = range(len(compressed.clusters))
    bases, scales_of = [*map(compressed.basis, numbers)], [*map(compressed.scales, numbers)]
    digests = [basis.digest for basis in bases]
    for index, (adapter, row) in enumerate(zip(compressed.adapters, compressed.rows, strict=True)):
        number = adapter.cluster
        scales = scales_of[number][row]
        used = zip(bases[number].pairs, scales.any(1).tolist(), strict=True)
        yield _Served(
            digest=compressed.digest(index, digests[number], scales),
            first_layer=min((layer_of(module) for module, is_used in used if is_used), default=0),
            number=number,
            basis=bases[number],
            basis_digest=digests[number],
            scales=scales,
        )


def _multiplied_out(compressed: CompressedLoras) -> Iterator[_Served]:
    """K x K matrices are no scales of components: each adapter is the LoRA that its factors multiply out to."""
    for index in range(len(compressed.adapters)):
        lora = compressed.lora(index)
        digest = lora.digest
        yield _Served(digest, lora.first_layer, index, lora, digest, None)


def _read(path: Path, variant: CompressionVariant, number: int) -> Lora:
    compressed = load_compressed(path)
    try:
        if compressed.variant == variant:
            return compressed.basis(number) if variant == "diagonal" else compressed.lora(number)
    except IndexError:
        pass
    raise ZweaveError(f"{path} changed since it was loaded: load it again")
