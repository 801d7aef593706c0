"""A model on disk: its config and its tensors, memory mapped from safetensors files."""

import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import ZweaveError
from .gguf.convert import convert_cached
from .hf_config import read_json
from .model_config import ModelConfig
from .pull import MODELS, model_directory
from .weight_source import weights_digest

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


class Checkpoint:
    """The tensors of a Hugging Face directory, checked against its config on opening.

    Raises ZweaveError for a missing, truncated or malformed file, for tensors that are missing or have
    another shape than the config says, and for shards outside the directory.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.directory = Path(path)
        self.config = ModelConfig.from_directory(self.directory)
        self._files = _tensor_files(self.directory)
        self._shapes = self.config.tensor_shapes()
        self._check()

    def names(self) -> list[str]:
        """Names of the model's tensors; other tensors in the files are left out."""
        return list(self._shapes)

    def tensor(self, name: str) -> Tensor:
        """The tensor as stored (float32, bfloat16 or float16), memory mapped; copy it before changing it."""
        if name not in self._shapes:
            raise KeyError(name)
        return self._files[name].get_tensor(name)

    def adapted_shapes(self) -> dict[str, tuple[int, int]]:
        """Module name to (out_features, in_features) of every adapted matrix, in layer order."""
        return self.config.adapted_shapes()

    def digest(self) -> str:
        """SHA-256 in hex over name, dtype, shape and bytes of all adapted matrices, in layer order."""
        return weights_digest(self)

    def _check(self) -> None:
        missing = [name for name in self._shapes if name not in self._files]
        if missing:
            raise ZweaveError(f"{self.directory} lacks {len(missing)} tensors, e.g. {_first_names(missing)}")
        for name, shape in self._shapes.items():
            entry = self._files[name].get_slice(name)
            found = tuple(entry.get_shape())
            if found != shape:
                raise ZweaveError(f"{self.directory}: {name} has shape {found}, the config says {shape}")
            if entry.get_dtype() not in _DTYPES:
                raise ZweaveError(
                    f"{self.directory}: {name} has dtype {entry.get_dtype()}, not {' or '.join(_DTYPES)}"
                )


def resolve_model(name_or_path: str | PathLike[str]) -> Checkpoint:
    """Opens a model by the name under which it was pulled, by its directory, or by its GGUF file.

    A GGUF file is converted once, into the cache. Raises ZweaveError if there is no such model.
    """
    name = os.fspath(name_or_path)
    if name in MODELS:
        directory = model_directory(name)
        if not directory.is_dir():
            raise ZweaveError(f"{name} is not in the cache yet: run `zweave pull {name}`")
        return Checkpoint(directory)
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        return Checkpoint(path)
    if path.suffix == ".gguf" and path.is_file():
        return Checkpoint(convert_cached(path))
    known = ", ".join(MODELS)
    raise ZweaveError(
        f"no model {name!r}: give a name to pull ({known}), a Hugging Face directory or a .gguf file"
    )


def _tensor_files(directory: Path) -> dict[str, Any]:
    """Tensor name to the open safetensors file that holds it."""
    if (directory / _INDEX).is_file():
        return _sharded(directory)
    if (directory / _SINGLE).is_file():
        handle = _open(directory / _SINGLE)
        return dict.fromkeys(handle.keys(), handle)
    if next(directory.glob("*.bin"), None) or next(directory.glob("*.pt*"), None):
        raise ZweaveError(
            f"{directory} holds pickled weights only, which may run code: "
            "save the model again with transformers' save_pretrained(safe_serialization=True)"
        )
    if next(directory.glob("*.gguf"), None):
        raise ZweaveError(f"{directory} holds GGUF files: give the .gguf file itself")
    raise ZweaveError(f"{directory} has no {_SINGLE}: download the model again")


def _sharded(directory: Path) -> dict[str, Any]:
    weight_map = read_json(directory / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise ZweaveError(f"{directory / _INDEX} has no weight_map of file names: download the model again")
    handles = {shard: _open(_inside(directory, shard)) for shard in sorted(set(weight_map.values()))}
    stored = {shard: frozenset(handle.keys()) for shard, handle in handles.items()}
    lost = [name for name, shard in weight_map.items() if name not in stored[shard]]
    if lost:
        raise ZweaveError(
            f"{directory}: the shards lack {len(lost)} tensors of the index, e.g. {_first_names(lost)}"
        )
    return {name: handles[shard] for name, shard in weight_map.items()}


def _inside(directory: Path, shard: str) -> Path:
    # A plain file name only. A link is fine: the Hugging Face cache is made of them.
    if shard != Path(shard).name or "\\" in shard or "\0" in shard or not shard.endswith(".safetensors"):
        raise ZweaveError(f"{directory / _INDEX} names the shard {shard!r}, which is not a file beside it")
    return directory / shard


def _open(path: Path) -> Any:
    if not path.is_file():
        raise ZweaveError(f"{path} is missing: download the model again")
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ZweaveError(f"{path} is damaged ({error}): download the model again") from None
    except OSError as error:
        raise ZweaveError(f"cannot read {path}: {error.strerror or error}") from None


def _first_names(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
