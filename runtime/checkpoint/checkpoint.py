"""A model on disk: its config and its tensors, memory mapped from safetensors files."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from zweave.kernels import GRID_FORMS, Grid, GridKind

from ..errors import ZweaveError
from .gguf.convert import convert_cached
from .gguf.grid_file import GridFile
from .gguf.reader import is_gguf
from .hf_config import ARCHITECTURES
from .model_config import ModelConfig
from .pull import MODELS, model_directory
from .quantized.dequantized import dequantized
from .quantized.matrix import QuantizedMatrix
from .tensor_files import ModelTensor, StoredTensor, first_names, stored_tensors
from .weight_source import weights_digest

_DTYPES = ("F32", "BF16", "F16")
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_BODY = ("embed_tokens.", "layers.", "norm.")


class Checkpoint:
    """The tensors of a Hugging Face directory, checked against its config on opening.

    config: as the tensors bear it out: a head that differs from the embedding is not tied to it.

    Raises ZweaveError for a missing, truncated or malformed file, for tensors that are missing or have
    another shape than the config says, and for shards outside the directory. Warns of tensors that the model
    does not have.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.directory = Path(path)
        _refuse_gguf_directory(self.directory)
        config = ModelConfig.from_directory(self.directory)
        stored = dequantized(self.directory, _with_prefix(stored_tensors(self.directory)))
        self.config, self._stored = self._resolve_head(config, stored)
        self._shapes = self.config.tensor_shapes()
        self._check()
        self._grids = GridFile(self.directory, self._shapes)
        self._warn_of_unused()
        self._digest = ""

    def names(self) -> list[str]:
        """Names of the model's tensors; other tensors in the files are left out."""
        return list(self._shapes)

    def tensor(self, name: str) -> Tensor:
        """The tensor in float32, bfloat16 or float16; copy it before changing it.

        Memory mapped as stored, but for matrices that the files hold quantised: these are dequantised by each call.
        """
        if name not in self._shapes:
            raise KeyError(name)
        return self._stored[name].read()

    @property
    def is_quantized(self) -> bool:
        """Whether the files hold some matrices quantised."""
        return any(isinstance(tensor, QuantizedMatrix) for tensor in self._stored.values())

    @property
    def grid_kinds(self) -> Mapping[str, GridKind]:
        """Tensor to kind of grid of the matrices that came on one; norms and models in bfloat16 have none."""
        return self._grids.kinds

    def grid(self, name: str) -> Grid | None:
        """The grid that a matrix came on, whose values are those of `tensor`; None if it came on none.

        Raises ZweaveError if the file of grids is damaged or of another model.
        """
        return self._grids.read(name, self.tensor(name).float().numpy()) if name in self.grid_kinds else None

    def adapted_grids(self) -> Mapping[str, GridKind]:
        """Module to kind of grid of the adapted matrices that came on one; ZweaveError if none did."""
        grids = {
            module: self.grid_kinds[f"{module}.weight"]
            for module in self.adapted_shapes()
            if f"{module}.weight" in self.grid_kinds
        }
        if not grids:
            raise ZweaveError(
                f"{self.directory} has no matrix on a grid ({', '.join(GRID_FORMS)} of a GGUF file): take "
                "weights='auto'; or, if an earlier zweave converted it, pull it or open its GGUF file again"
            )
        return grids

    def adapted_shapes(self) -> dict[str, tuple[int, int]]:
        """Module name to (out_features, in_features) of every adapted matrix, in layer order."""
        return self.config.adapted_shapes()

    def digest(self) -> str:
        """SHA-256 in hex over name, dtype, shape and bytes of all adapted matrices, in layer order.

        Of a quantised checkpoint what counts is the matrices that `tensor` returns.
        """
        if not self._digest:
            self._digest = weights_digest(self)
        return self._digest

    def _resolve_head(
        self, config: ModelConfig, stored: dict[str, ModelTensor]
    ) -> tuple[ModelConfig, dict[str, ModelTensor]]:
        """What a tied model with a stored head means, by transformers' rules.

        Where the embedding is not stored the head stands for both; where they differ they are not tied.
        """
        if not config.tie_embeddings or _HEAD not in stored:
            return config, stored
        if _EMBEDDING not in stored:
            return config, stored | {_EMBEDDING: stored[_HEAD]}
        if _same_values(stored[_HEAD], stored[_EMBEDDING]):
            return config, stored
        warnings.warn(
            f"{self.directory}: the config ties the head to the embedding, but the files hold a different "
            f"{_HEAD}: it is used",
            stacklevel=2,
        )
        return replace(config, tie_embeddings=False), stored

    def _check(self) -> None:
        missing = [name for name in self._shapes if name not in self._stored]
        if missing == [_HEAD]:
            raise ZweaveError(
                f"{self.directory} has no {_HEAD}, and its config does not tie the head to the embedding: "
                "a model without a head says nothing; take the whole one"
            )
        if missing:
            raise ZweaveError(f"{self.directory} lacks {len(missing)} tensors, e.g. {first_names(missing)}")
        for name, shape in self._shapes.items():
            stored = self._stored[name]
            if stored.shape != shape:
                raise ZweaveError(
                    f"{self.directory}: {name} has shape {stored.shape}, the config says {shape}"
                )
            if stored.dtype not in _DTYPES:
                raise ZweaveError(
                    f"{self.directory}: {name} has dtype {stored.dtype}, not {' or '.join(_DTYPES)}"
                )

    def _warn_of_unused(self) -> None:
        unused = [
            stored.name
            for name, stored in self._stored.items()
            # A head that equals the embedding, and tables that old files hold and nobody reads.
            if name not in self._shapes and name != _HEAD and not name.endswith("rotary_emb.inv_freq")
        ]
        if unused:
            warnings.warn(
                f"{self.directory}: a {ARCHITECTURES[self.config.architecture]} has no {first_names(unused)}: "
                f"{len(unused)} tensors are ignored",
                stacklevel=2,
            )


def resolve_model(name_or_path: str | PathLike[str]) -> Checkpoint:
    """Opens a model by the name under which it was pulled, by its directory, or by its GGUF file.

    A GGUF file is known by its first bytes, and converted once, into the cache; any part of a split one will do.
    Raises ZweaveError if there is no such model.
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
    if path.is_file():
        if path.suffix.lower() == ".gguf" or is_gguf(path):
            return Checkpoint(convert_cached(path))
        raise ZweaveError(f"{path} is no GGUF file: give one, or the directory of a Hugging Face model")
    known = ", ".join(MODELS)
    raise ZweaveError(
        f"no model {name!r}: give a name to pull ({known}), a Hugging Face directory or a GGUF file"
    )


def _refuse_gguf_directory(directory: Path) -> None:
    files = sorted(path.name for path in directory.glob("*") if path.suffix.lower() == ".gguf")
    if files and not next(directory.glob("*.safetensors"), None):
        raise ZweaveError(f"{directory} holds GGUF files: give the file itself ({first_names(files)})")


def _with_prefix(stored: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Names as a model with a head has them: one that was saved without a head lacks the `model.` in front."""
    if _EMBEDDING in stored or _EMBEDDING.removeprefix("model.") not in stored:
        return stored
    return {f"model.{name}" if name.startswith(_BODY) else name: tensor for name, tensor in stored.items()}


def _same_values(one: ModelTensor, other: ModelTensor) -> bool:
    """Whether two matrices are equal; some rows at a time, as their dtypes may differ."""
    if one.shape != other.shape:
        return False
    rows = zip(one.read().split(1 << 12), other.read().split(1 << 12), strict=True)
    return all(torch.equal(first.float(), second.float()) for first, second in rows)
