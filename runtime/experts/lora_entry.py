"""A registered LoRA: what is known of it while its matrices lie in a directory, or its basis in a file."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from torch import Tensor

from ..adapters.compression.compressed import CompressedLoras
from ..adapters.compression.compressed_file import load_compressed
from ..adapters.lora import Lora
from ..adapters.peft_directory import read_peft
from ..errors import ZweaveError
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
        """Its basis; ZweaveError if its directory or file is gone or was changed."""
        lora = self.source()
        if self.path is not None and lora.digest != self.basis:
            raise ZweaveError(f"{self.path} changed since it was loaded as {self.name!r}: load it again")
        return lora

    @classmethod
    def of(
        cls, name: str, source: Lora | Path, shapes: Mapping[str, tuple[int, int]]
    ) -> tuple["LoraEntry", Lora]:
        """The entry of a LoRA or its directory, and the LoRA; ZweaveError if it does not fit the model."""
        path = None if isinstance(source, Lora) else source.absolute()
        lora = source if isinstance(source, Lora) else read_peft(source)
        try:
            lora.check(shapes)
        except ZweaveError as error:
            raise ZweaveError(f"{path or f'the adapter {name!r}'}: {error}") from None
        entry = cls(
            name=name,
            digest=lora.digest,
            scope=lora.scope,
            first_layer=lora.first_layer,
            description=lora.description,
            invocation_tokens=lora.invocation_tokens,
            rank=lora.rank,
            basis=lora.digest,
            source=(lambda: lora) if path is None else partial(read_peft, path),
            path=path,
            prompt_template=lora.prompt_template,
        )
        return entry, lora


def compressed_entries(compressed: CompressedLoras, path: Path) -> Iterator[tuple[LoraEntry, Lora]]:
    """The entries of a file of compressed LoRAs that was loaded, and the basis of each.

    Adapters of the full variant, whose K x K matrices are no scales, have their own: each is the LoRA that its factors
    multiply out to.
    """
    path = path.absolute()
    is_shared = compressed.variant == "diagonal"
    bases = [compressed.basis(number) for number in range(len(compressed.clusters))] if is_shared else []
    digests = [basis.digest for basis in bases]
    for index, adapter in enumerate(compressed.adapters):
        if is_shared:
            basis, digest = bases[adapter.cluster], digests[adapter.cluster]
        else:
            basis = compressed.lora(index)
            digest = basis.digest
        entry = LoraEntry(
            name=adapter.name,
            digest=compressed.digest(index, digest) if is_shared else digest,
            scope=adapter.scope,
            first_layer=compressed.first_layer(index),
            description=adapter.description,
            invocation_tokens=adapter.invocation_tokens,
            rank=basis.rank,
            basis=digest,
            source=partial(_read_compressed, path, adapter.cluster if is_shared else index, is_shared),
            path=path,
            scales=compressed.scales(index) if is_shared else None,
            prompt_template=_template(adapter.prompt_template),
        )
        yield entry, basis


def _template(text: str) -> PromptTemplate | None:
    return PromptTemplate.from_json(text) if text else None


def _read_compressed(path: Path, number: int, is_shared: bool) -> Lora:
    """The basis of a cluster, or an adapter of the full variant."""
    compressed = load_compressed(path)
    try:
        if is_shared == (compressed.variant == "diagonal"):
            return compressed.basis(number) if is_shared else compressed.lora(number)
    except IndexError:
        pass
    raise ZweaveError(f"{path} changed since it was loaded: load it again")
