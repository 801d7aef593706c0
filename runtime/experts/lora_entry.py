"""A registered LoRA: what is known of it while its matrices lie in a directory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
    digest: of the LoRA, see `Lora.digest`.
    scope: of the LoRA.
    first_layer: of the LoRA.
    description: of the LoRA.
    invocation_tokens: of the LoRA.
    rank: of the LoRA.
    path: its directory, read again when its components are wanted; None if `lora` is in memory.
    lora: the LoRA, None if it is in a directory.
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
    path: Path | None
    lora: Lora | None
    prompt_template: PromptTemplate | None
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
        """The LoRA; ZweaveError if its directory is gone or was changed."""
        if self.lora is not None:
            return self.lora
        assert self.path is not None
        lora = read_peft(self.path)
        if lora.digest != self.digest:
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
            path=path,
            lora=lora if path is None else None,
            prompt_template=lora.prompt_template,
        )
        return entry, lora
