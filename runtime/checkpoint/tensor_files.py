"""The tensors in a directory's safetensors files: in one file, in shards with an index, in shards without."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import ZweaveError, one_line, shortened
from .hf_config import read_json

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SHARD = re.compile(r"(?P<name>.+)-(?P<part>[0-9]{5})-of-(?P<count>[0-9]{5})\.safetensors")


class ModelTensor(Protocol):
    """A tensor of a model, read when it is asked for."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str:
        """As safetensors names it, e.g. "BF16"."""
        ...

    def read(self) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in an open safetensors file, memory mapped.

    name: as the file calls it.
    """

    file: Any
    name: str

    def read(self) -> Tensor:
        return self.file.get_tensor(self.name)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.file.get_slice(self.name).get_shape())

    @property
    def dtype(self) -> str:
        """As safetensors names it, e.g. "BF16"."""
        return self.file.get_slice(self.name).get_dtype()


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Name to tensor of all that the directory's files hold.

    One file goes before an index, as in transformers: the index may be left over from a former save. Raises
    ZweaveError for missing, damaged and pickled files, and for shards outside the directory.
    """
    if (directory / _SINGLE).is_file():
        return _tensors_of([directory / _SINGLE])
    if (directory / _INDEX).is_file():
        return _indexed(directory)
    shards = _shards(directory)
    if shards:
        return _tensors_of(shards)
    if next(directory.glob("*.bin"), None) or next(directory.glob("*.pt*"), None):
        raise ZweaveError(
            f"{directory} holds pickled weights only, which may run code: "
            "save the model again with transformers' save_pretrained(safe_serialization=True)"
        )
    raise ZweaveError(f"{directory} has no {_SINGLE}: download the model again")


def first_names(names: Sequence[str], count: int = 3) -> str:
    """Some names for a message, which a file may have filled with anything."""
    shown = [
        name if name.isprintable() and len(name) <= 80 else shortened(name, 80) for name in names[:count]
    ]
    return ", ".join(shown) + (", ..." if len(names) > count else "")


def _indexed(directory: Path) -> dict[str, StoredTensor]:
    weight_map = read_json(directory / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise ZweaveError(f"{directory / _INDEX} has no weight_map of file names: download the model again")
    handles = {shard: _open(_inside(directory, shard)) for shard in sorted(set(weight_map.values()))}
    stored = {shard: frozenset(handle.keys()) for shard, handle in handles.items()}
    lost = [name for name, shard in weight_map.items() if name not in stored[shard]]
    if lost:
        raise ZweaveError(
            f"{directory}: the shards lack {len(lost)} tensors of the index, e.g. {first_names(lost)}"
        )
    return {name: StoredTensor(handles[shard], name) for name, shard in weight_map.items()}


def is_listed(directory: Path) -> bool:
    """Whether the weights are one file of the usual name, or shards with an index: what other libraries look for."""
    return any((directory / name).is_file() for name in (_SINGLE, _INDEX))


def _shards(directory: Path) -> list[Path]:
    """The files NAME-00001-of-0000N.safetensors in order; ZweaveError if one is missing, or two sets are there."""
    found = [match for path in directory.glob("*") if (match := _SHARD.fullmatch(path.name))]
    sets = sorted({(match["name"], match["count"]) for match in found})
    if len(sets) > 1:
        names = ", ".join(f"{name}-*-of-{count}" for name, count in sets[:3])
        raise ZweaveError(f"{directory} holds shards of several models and no {_INDEX}: {names}; keep one")
    return [
        directory / f"{name}-{part:05}-of-{count}.safetensors"
        for name, count in sets
        for part in range(1, int(count) + 1)
    ]


def _tensors_of(paths: Iterable[Path]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for path in paths:
        file = _open(path)
        for name in file.keys():  # noqa: SIM118 (not a dict)
            if name in tensors:
                raise ZweaveError(
                    f"{path} holds {first_names([name])}, which another shard holds, too: keep one of them"
                )
            tensors[name] = StoredTensor(file, name)
    return tensors


def _inside(directory: Path, shard: str) -> Path:
    # A plain file name only. A link is fine: the Hugging Face cache is made of them.
    if (
        shard != Path(shard).name
        or "\\" in shard
        or not shard.isprintable()
        or not shard.endswith(".safetensors")
    ):
        raise ZweaveError(
            f"{directory / _INDEX} names the shard {shortened(shard, 80)}, which is not a file beside it"
        )
    return directory / shard


def _open(path: Path) -> Any:
    if not path.is_file():
        raise ZweaveError(f"{path} is missing: download the model again")
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ZweaveError(f"{path} is damaged ({one_line(error)}): download the model again") from None
    except OSError as error:
        raise ZweaveError(f"cannot read {path}: {error.strerror or error}") from None
