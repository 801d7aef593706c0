"""A registered expert: what is known of it while its z lie in a file."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from torch import Tensor

from ..errors import ZweaveError
from ..text.prompt_template import PromptTemplate
from .bundled import expert_file
from .expert import Expert, Scope, z_of


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
    path: its file, read again when a slot needs its z; None if `expert` is in memory.
    content: sha256 of the file's bytes, "" for an expert in memory.
    stamp: of the file when it was loaded, see `_stamp`; None for an expert in memory.
    expert: the expert, None if it is in a file.
    """

    name: str
    digest: str
    scope: Scope
    first_layer: int
    renormalise: bool
    description: str
    prompt_template: PromptTemplate | None
    path: Path | None
    content: str
    stamp: tuple[int, ...] | None
    expert: Expert | None

    def read(self) -> Expert:
        """The expert; ZweaveError if its file is gone or was changed."""
        if self.expert is not None:
            return self.expert
        assert self.path is not None
        expert = Expert.load(self.path)
        if expert.digest != self.digest:
            raise ZweaveError(f"{self.path} changed since it was loaded as {self.name!r}: load it again")
        return expert

    @property
    def invocation_tokens(self) -> tuple[int, ...]:
        """What activates it beside its scope: nothing."""
        return ()

    @property
    def is_unchanged(self) -> bool:
        """Whether its file, if it has one, looks as it did when it was loaded."""
        return self.path is None or (self.stamp is not None and self.stamp == _stamp(self.path))

    def read_z(self) -> Mapping[str, Tensor]:
        """z of each matrix; a file with the bytes that were checked when it was loaded is not checked again.

        Raises ZweaveError as `read` does.
        """
        if self.expert is not None:
            return self.expert.z
        assert self.path is not None
        data = _bytes_of(self.path)
        return z_of(data) if _sha256(data) == self.content else self.read().z

    @classmethod
    def of(
        cls,
        name: str,
        expert: str | PathLike[str] | Expert,
        shapes: Mapping[str, tuple[int, ...]],
        base_digest: str | None,
    ) -> "ExpertEntry":
        """The entry of an expert, its file, or a name that comes with zweave; ZweaveError if it does not fit."""
        path = None if isinstance(expert, Expert) else expert_file(expert).absolute()
        # Before it is read: a file that changes meanwhile is checked again.
        stamp = None if path is None else _stamp(path)
        content = "" if path is None else _sha256(_bytes_of(path))
        held = expert if isinstance(expert, Expert) else Expert.load(expert)
        try:
            held.check(shapes, base_digest)
        except ZweaveError as error:
            raise ZweaveError(f"{path or f'the expert {name!r}'}: {error}") from None
        return cls(
            name=name,
            digest=held.digest,
            scope=held.scope,
            first_layer=held.first_layer,
            renormalise=held.renormalise,
            description=held.description,
            prompt_template=held.prompt_template,
            path=path,
            content=content,
            stamp=stamp,
            expert=_copy(held) if path is None else None,
        )


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What shows that a file was changed or replaced; None if there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _bytes_of(path: Path) -> bytes:
    """A file's bytes, none if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _copy(expert: Expert) -> Expert:
    """A copy whose digest stays true whatever the caller does to the original's tensors."""
    return replace(expert, z={module: z.detach().cpu().clone() for module, z in expert.z.items()})
