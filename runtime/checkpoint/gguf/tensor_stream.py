"""Writes a safetensors file tensor by tensor, so that memory holds a part of one at a time."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np


@dataclass(frozen=True, slots=True)
class StreamedTensor:
    """A tensor whose values are made when they are written.

    name: in the file.
    dtype: "F32" or "U8".
    shape: of the whole tensor.
    chunks: gives the values in order, whole rows at a time.
    """

    name: str
    dtype: Literal["F32", "U8"]
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[np.ndarray]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * (4 if self.dtype == "F32" else 1)


def write_stream(
    file: BinaryIO,
    tensors: Sequence[StreamedTensor],
    metadata: Mapping[str, str],
    report: Callable[[int], None] = lambda done: None,
) -> None:
    """Writes all tensors and the metadata; the same give the same bytes.

    report: called with how many tensors are written.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for tensor in tensors:
        ends = [offset, offset + tensor.nbytes]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": ends}
        offset = ends[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    file.write(len(text).to_bytes(8, "little") + text)
    for done, tensor in enumerate(tensors):
        report(done)
        for values in tensor.chunks():
            file.write(np.ascontiguousarray(values, dtype="<f4" if tensor.dtype == "F32" else "u1").data)
    report(len(tensors))
