"""Reads GGUF files that nobody vouches for: every count is checked against the file before it is used.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, little-endian versions 2 and 3. The
reader of the `gguf` package trusts the counts in the file; only its tables and dequantisation are used.
"""

import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from ...errors import ZweaveError
from ...validation import is_integer

_MAGIC = b"GGUF"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# ggml's own limits.
_MAX_NAME = 64
_MAX_DIMENSIONS = 4
# Values that are dequantised at a time.
_CHUNK = 1 << 24


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor lies in the file.

    shape: as in PyTorch, the last dimension contiguous.
    kind: format of the values.
    offset: bytes from the begin of the file.
    size: bytes of the tensor.
    """

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    size: int


def is_gguf(path: Path) -> bool:
    """Whether a file begins as a GGUF file does; ZweaveError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError as error:
        raise ZweaveError(f"cannot read {path}: {error.strerror}") from None


class GgufFile:
    """Metadata and tensors of a GGUF file, memory mapped.

    Raises ZweaveError if the file is truncated or malformed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is empty"
            raise ZweaveError(f"cannot read {path}: {reason}") from None
        self._position = 0
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, GgufTensor] = {}
        try:
            self._read_header()
        except (struct.error, UnicodeDecodeError, _DamagedError) as error:
            known = isinstance(error, _DamagedError)
            reason = str(error) if known else "it ends early or its text is no UTF-8"
            raise ZweaveError(f"{path} is not a valid GGUF file: {reason}") from None

    def float_chunks(self, name: str) -> Iterator[np.ndarray]:
        """A tensor's values in float32, some rows at a time, [rows, shape[-1]] each.

        Raises ZweaveError for a type that cannot be dequantised, and for values that are not finite.
        """
        tensor = self.tensors[name]
        stored = self.stored_rows(name)
        step = max(1, _CHUNK // tensor.shape[-1])
        for start in range(0, len(stored), step):
            try:
                # Values that are not finite are refused below.
                with np.errstate(all="ignore"):
                    values = dequantize(stored[start : start + step], tensor.kind)
            except NotImplementedError:
                raise ZweaveError(
                    f"{self.path}: type {tensor.kind.name} of {name} is not supported"
                ) from None
            if not np.isfinite(values).all():
                raise ZweaveError(
                    f"{self.path}: {name} holds values that are not finite; the file is damaged"
                )
            yield values

    def stored_rows(self, name: str) -> np.ndarray:
        """A tensor's rows as they are stored, uint8 [rows, bytes of a row], memory mapped."""
        tensor = self.tensors[name]
        rows = math.prod(tensor.shape[:-1])
        return np.frombuffer(self._data, np.uint8, tensor.size, tensor.offset).reshape(rows, -1)

    def _read_header(self) -> None:
        if self._data[: len(_MAGIC)] != _MAGIC:
            raise _DamagedError("it does not begin with GGUF")
        self._position = len(_MAGIC)
        version = self._scalar("I")
        if version not in (2, 3):
            raise _DamagedError(f"version {version} is not supported, only little-endian 2 and 3 are")
        tensors, pairs = self._scalar("Q"), self._scalar("Q")
        # A pair takes at least 13 bytes and a tensor 32, so the counts bound the work by the file's size.
        self._expect(pairs * 13 + tensors * 32)
        for _ in range(pairs):
            key = self._string()
            if key in self.metadata:
                raise _DamagedError(f"the key {key[:_MAX_NAME]!r} appears twice")
            self.metadata[key] = self._value(self._scalar("I"))
        found = [self._tensor() for _ in range(tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if not (is_integer(alignment) and 0 < alignment <= 1 << 20) or alignment % 8:
            raise _DamagedError(f"alignment {alignment!r}")
        self._place(found, -(-self._position // alignment) * alignment, alignment)

    def _place(self, found: list[tuple[str, GgufTensor]], base: int, alignment: int) -> None:
        """Checks that the tensors lie within the file, apart from each other."""
        end = base
        for name, tensor in sorted(found, key=lambda item: item[1].offset):
            start = base + tensor.offset
            if name in self.tensors:
                raise _DamagedError(f"the tensor {name!r} appears twice")
            if tensor.offset % alignment or start < end:
                raise _DamagedError(f"the tensor {name!r} is misplaced")
            end = start + tensor.size
            if end > len(self._data):
                raise _DamagedError(f"it ends before the tensor {name!r} does; download it again")
            self.tensors[name] = GgufTensor(tensor.shape, tensor.kind, start, tensor.size)

    def _tensor(self) -> tuple[str, GgufTensor]:
        name = self._string(_MAX_NAME)
        dimensions = self._scalar("I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise _DamagedError(f"the tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self._scalar("Q") for _ in range(dimensions))[::-1]
        number = self._scalar("I")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise _DamagedError(f"the tensor {name!r} has the unknown type {number}") from None
        block, block_size = GGML_QUANT_SIZES[kind]
        count = math.prod(shape)
        if not 0 < count < 1 << 48 or shape[-1] % block:
            raise _DamagedError(f"the tensor {name!r} of type {kind.name} has the shape {shape}")
        return name, GgufTensor(shape, kind, self._scalar("Q"), count // block * block_size)

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise _DamagedError(f"a value has the unknown type {kind}")
        kind, count = self._scalar("I"), self._scalar("Q")
        if kind == _STRING:
            self._expect(count * 8)
            return [self._string() for _ in range(count)]
        if kind not in _SCALARS:
            raise _DamagedError(f"an array has the type {kind}")
        form = f"<{count}{_SCALARS[kind]}"
        size = count * struct.calcsize("<" + _SCALARS[kind])
        self._expect(size)
        values = list(struct.unpack_from(form, self._data, self._position))
        self._position += size
        return values

    def _scalar(self, form: str) -> Any:
        size = struct.calcsize("<" + form)
        (value,) = struct.unpack_from("<" + form, self._data, self._position)
        self._position += size
        return value

    def _string(self, limit: int | None = None) -> str:
        size = self._scalar("Q")
        self._expect(size)
        if limit is not None and size > limit:
            raise _DamagedError(f"a tensor's name has {size} bytes")
        start = self._position
        self._position += size
        return self._data[start : start + size].decode("utf-8")

    def _expect(self, size: int) -> None:
        if size > len(self._data) - self._position:
            raise _DamagedError("it ends early; download it again")


class _DamagedError(Exception):
    """What is wrong with the file."""
