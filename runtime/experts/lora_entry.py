"""A registered LoRA: what is known of it while its matrices lie in a directory, or its basis in a file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from ..adapters.lora import Lora
from ..adapters.peft_directory import read_peft
from ..errors import ZweaveError
from ..text.prompt_template import PromptTemplate
from .expert import Scope
from .flat_layout import FlatLayout
from .flat_z import FlatZ


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
    renormalise: bool = False
    prompt_template: PromptTemplate | None = None
    modes: None = None

    @property
    def is_unchanged(self) -> bool:
        """It has no rows that could be out of date: its components go by its digest."""
        return True

    def read_z(self, layout: FlatLayout) -> FlatZ:
        """It scales no component of the base model: z is 1 everywhere."""
        return FlatZ.of({}, layout)

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
        )
        return entry, lora
