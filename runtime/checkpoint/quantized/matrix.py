"""A matrix that is stored quantised, and the tensors that stand for it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...errors import ZweaveError
from ..tensor_files import StoredTensor, first_names

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """W [out_features, in_features], dequantised whenever it is read.

    directory: of the checkpoint, for messages.
    to: the dtype of what is read.
    dequantize: computes W in float32.
    """

    directory: Path
    name: str
    shape: tuple[int, int]
    to: torch.dtype
    dequantize: Callable[[], Tensor]

    def read(self) -> Tensor:
        """W, contiguous, in `to`; ZweaveError for values that are not finite there."""
        values = self.dequantize().to(self.to)
        if not values.isfinite().all():
            raise ZweaveError(
                f"{self.directory}: {self.name} holds values that are not finite in {_name(self.to)}, or scales "
                "that are not: the file is damaged"
            )
        return values

    @property
    def dtype(self) -> str:
        """As safetensors names it, e.g. "BF16"."""
        return _NAMES[self.to]


@dataclass(frozen=True, slots=True)
class QuantizedFiles:
    """The tensors of a quantised checkpoint, by name, each checked before it is used.

    to: the dtype that matrices are dequantised to.
    """

    directory: Path
    stored: Mapping[str, StoredTensor]
    to: torch.dtype

    def modules(self, part: str) -> list[str]:
        """The modules that have a tensor "MODULE.part"."""
        return [name.removesuffix(f".{part}") for name in self.stored if name.endswith(f".{part}")]

    def part(
        self, module: str, part: str, dtypes: Iterable[str], shape: tuple[int, ...] | None = None
    ) -> StoredTensor:
        """The tensor "MODULE.part"; ZweaveError if it is missing or has another dtype or shape."""
        name = f"{module}.{part}"
        if name not in self.stored:
            raise ZweaveError(
                f"{self.directory} lacks {first_names([name])}, without which {first_names([module])} cannot be "
                "dequantised: download the model again"
            )
        tensor = self.stored[name]
        if tensor.dtype not in dtypes:
            raise self.unusable(name, f"has dtype {tensor.dtype}, not {' or '.join(dtypes)}")
        if shape is not None and tensor.shape != shape:
            raise self.unusable(name, f"has shape {tensor.shape}, its quantization_config means {shape}")
        return tensor

    def indices(self, module: str, part: str, limit: int, unset: int | None = None) -> Tensor | None:
        """The indices in "MODULE.part", int64, which name groups below `limit`; None if one of them is `unset`.

        Raises ZweaveError for others.
        """
        values = self.stored[f"{module}.{part}"].read().long()
        if unset is not None and bool((values == unset).any()):
            return None
        if values.min() < 0 or values.max() >= limit:
            raise self.unusable(
                f"{module}.{part}", f"names groups outside 0 to {limit - 1}: the file is damaged"
            )
        return values

    def packed(self, module: str, part: str) -> tuple[int, int]:
        """The shape of "MODULE.part", a matrix of int32; ZweaveError if it is none."""
        shape = self.part(module, part, ("I32",)).shape
        if len(shape) != 2:
            raise self.unusable(f"{module}.{part}", f"has shape {shape}, a matrix is expected")
        return shape[0], shape[1]

    def unusable(self, name: str, why: str) -> ZweaveError:
        return ZweaveError(f"{self.directory}: {first_names([name])} {why}")

    def matrix(
        self, module: str, shape: tuple[int, int], dequantize: Callable[[], Tensor]
    ) -> dict[str, QuantizedMatrix]:
        """The module's matrix by its name, "MODULE.weight"."""
        name = f"{module}.weight"
        return {name: QuantizedMatrix(self.directory, name, shape, self.to, dequantize)}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
