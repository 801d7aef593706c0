"""A registered LoRA: what is known of it while its matrices lie in a directory, or its basis in a file."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from torch import Tensor

from ..adapters.compression.compressed import CompressedLoras
from ..adapters.compression.compressed_file import load_compressed
from ..adapters.lora import Lora, LoraPair
from ..adapters.peft_directory import read_peft
from ..checkpoint.module_name import layer_of
from ..errors import ZweaveError
from ..names import CompressionVariant
from ..step_turns import rest
from ..text.prompt_template import PromptTemplate
from .expert import Scope
from .flat_layout import FlatLayout
from .flat_z import FlatZ, Values


@dataclass(frozen=True, slots=True, eq=False)
class LoraEntry:
    """A registered LoRA, without its matrices unless it was given in memory.

    name: under which it is registered.
    digest: of the LoRA, see `Lora.digest`, or of its share in a basis.
    scope: of the LoRA.
    first_layer: of the LoRA.
    description: of the LoRA.
    invocation_tokens: of the LoRA.
    rank: of its basis.
    basis: digest of the LoRA that is resident for it: itself, or the components that it shares with others.
    source: reads that LoRA.
    path: its directory or file, read again when its basis is wanted; None if that is in memory.
    scales: of a shared basis' components, see `Share.scales`.
    prompt_template: of the LoRA.
    kind: what it is.
    renormalise, modes: what experts have, and LoRAs never.
    """

    name: str
    digest: str
    scope: Scope
    first_layer: int
    description: str
    invocation_tokens: tuple[int, ...]
    rank: int
    basis: str
    source: Callable[[], Lora]
    path: Path | None
    scales: Tensor | None = None
    prompt_template: PromptTemplate | None = None
    kind: Literal["lora"] = "lora"
    renormalise: bool = False
    modes: None = None

    @property
    def is_unchanged(self) -> bool:
        """It has no rows that could be out of date: its components go by its digest."""
        return True

    def read_z(self, layout: FlatLayout, out: Values | None = None) -> FlatZ:
        """It scales no component of the base model: z is 1 everywhere."""
        return FlatZ.of({}, layout, out)

    def read(self) -> Lora:
        """The LoRA by itself: of a shared basis its own share, in the matrices that it changes; as `read_basis`."""
        basis = self.read_basis()
        if self.scales is None:
            return basis
        shares = zip(basis.pairs.items(), self.scales, strict=True)
        pairs = {
            module: LoraPair(pair.a, pair.b * scales[: pair.rank], pair.scaling)
            for (module, pair), scales in shares
            if scales.any()
        }
        return Lora(pairs, self.scope, self.invocation_tokens, self.description, self.prompt_template)

    def read_basis(self) -> Lora:
        """Its basis; ZweaveError if its directory or file is gone or was changed."""
        lora = self.source()
        if self.path is not None and lora.digest != self.basis:
            raise ZweaveError(f"{self.path} changed since it was loaded as {self.name!r}: load it again")
        return lora

    @classmethod
    def of(
        cls,
        name: str,
        source: Lora | Path,
        shapes: Mapping[str, tuple[int, int]],
    ) -> tuple["LoraEntry", Lora]:
        """The entry of a LoRA or its directory, and the LoRA; ZweaveError if it does not fit the model."""
        path = None if isinstance(source, Lora) else source.absolute()
        lora = source if isinstance(source, Lora) else read_peft(source)
        try:
            lora.check(shapes)
        except ZweaveError as error:
            raise ZweaveError(f"{path or f'the adapter {name!r}'}: {error}") from None
        digest = lora.digest
        entry = cls(
            name=name,
            digest=digest,
            scope=lora.scope,
            first_layer=lora.first_layer,
            description=lora.description,
            invocation_tokens=lora.invocation_tokens,
            rank=lora.rank,
            basis=digest,
            source=(lambda: lora) if path is None else partial(read_peft, path),
            path=path,
            prompt_template=lora.prompt_template,
        )
        return entry, lora


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
            source=partial(_read_compressed, path, compressed.variant, found.number),
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


def _read_compressed(path: Path, variant: CompressionVariant, number: int) -> Lora:
    compressed = load_compressed(path)
    rest()
    try:
        if compressed.variant == variant:
            return compressed.basis(number) if variant == "diagonal" else compressed.lora(number)
    except IndexError:
        pass
    raise ZweaveError(f"{path} changed since it was loaded: load it again")
