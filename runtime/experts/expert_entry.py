"""A registered expert: what is known of it while its z lie in a file."""

from dataclasses import dataclass, replace
from os import PathLike
from typing import Literal

from ..errors import ZweaveError
from ..text.prompt_template import PromptTemplate
from .bundled import expert_file
from .expert import Expert, Scope
from .expert_file import ExpertFile
from .flat_layout import FlatLayout
from .flat_z import FlatZ, Values
from .slot_rows import SlotModes


@dataclass(frozen=True, slots=True, eq=False)
class ExpertEntry:
    """A registered expert, without its z unless it was given in memory.

    name: under which it is registered.
    digest: of the expert, see `Expert.digest`.
    scope: of the expert.
    first_layer: of the expert.
    renormalise: of the expert.
    description: of the expert.
    prompt_template: of the expert.
    file: read again when a slot needs its z; None if `expert` is in memory.
    expert: the expert, None if it is in a file.
    flat: z of `expert`, the memory that is also its z.
    kind: what it is.
    modes: of its rows if `SlotTables.write_z` may write them; else None.
    """

    name: str
    digest: str
    scope: Scope
    first_layer: int
    renormalise: bool
    description: str
    prompt_template: PromptTemplate | None
    file: ExpertFile | None
    expert: Expert | None = None
    flat: FlatZ | None = None
    modes: SlotModes | None = None
    kind: Literal["expert"] = "expert"

    def read(self) -> Expert:
        """The expert; ZweaveError if its file is gone or was changed."""
        if self.expert is not None:
            return self.expert
        assert self.file is not None
        expert = Expert.load(self.file.path)
        if expert.digest != self.digest:
            raise ZweaveError(f"{self.file.path} changed since it was loaded as {self.name!r}: load it again")
        return expert

    @property
    def invocation_tokens(self) -> tuple[int, ...]:
        """What activates it beside its scope: nothing."""
        return ()

    @property
    def is_unchanged(self) -> bool:
        """Whether its file, if it has one, looks as it did when it was loaded."""
        return self.file is None or self.file.is_unchanged

    def read_z(self, layout: FlatLayout, out: Values | None = None) -> FlatZ:
        """z of all matrices; a file that is the one that was checked when it was loaded is not checked again.

        out: where z of a file go; new memory by default.
        Raises ZweaveError as `read` does.
        """
        if self.flat is not None:
            return self.flat
        assert self.file is not None
        return self.file.read_z(layout, out) or FlatZ.of(self.read().z, layout, out)

    @classmethod
    def of(
        cls, name: str, expert: str | PathLike[str] | Expert, layout: FlatLayout, base_digest: str | None
    ) -> "ExpertEntry":
        """The entry of an expert, its file, or a name that comes with zweave; ZweaveError if it does not fit.

        layout: of the model's matrices.
        base_digest: of the model's weights; compared if both are known.
        """
        if isinstance(expert, Expert):
            try:
                expert.check(layout.shapes, base_digest)
            except ZweaveError as error:
                raise ZweaveError(f"the expert {name!r}: {error}") from None
            # A copy, whose digest stays true whatever the caller does to the original's tensors.
            flat = FlatZ.of(expert.z, layout)
            copy = replace(expert, z=flat.by_module(layout))
            return cls._about(name, copy, None, copy, flat)
        held, file = ExpertFile.load(expert_file(expert), layout, base_digest)
        return cls._about(name, held, file)

    @classmethod
    def _about(
        cls,
        name: str,
        expert: Expert,
        file: ExpertFile | None,
        held: Expert | None = None,
        flat: FlatZ | None = None,
    ) -> "ExpertEntry":
        return cls(
            name=name,
            digest=expert.digest,
            scope=expert.scope,
            first_layer=expert.first_layer,
            renormalise=expert.renormalise,
            description=expert.description,
            prompt_template=expert.prompt_template,
            file=file,
            expert=held,
            flat=flat,
        )
