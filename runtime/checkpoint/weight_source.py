"""Where adapted matrices come from: a checkpoint on disk, or a model that is loaded already."""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor


class WeightSource(Protocol):
    """Named matrices to decompose."""

    def adapted_shapes(self) -> Mapping[str, tuple[int, int]]:
        """Module name to (out_features, in_features) of every adapted matrix, in layer order."""
        ...

    def tensor(self, name: str) -> Tensor:
        """The matrix W [out_features, in_features] of the name "MODULE.weight"; copy it before changing it."""
        ...

    def digest(self) -> str:
        """`weights_digest` of the source."""
        ...


def weights_digest(source: WeightSource) -> str:
    """SHA-256 in hex over name, dtype, shape and bytes of all adapted matrices, in layer order."""
    names = [f"{module}.weight" for module in source.adapted_shapes()]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        digests = list(pool.map(lambda name: _tensor_digest(name, source.tensor(name)), names))
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _tensor_digest(name: str, tensor: Tensor) -> bytes:
    dtype = str(tensor.dtype).removeprefix("torch.")
    shape = "x".join(map(str, tensor.shape))
    digest = hashlib.sha256(f"{name}\n{dtype}\n{shape}\n".encode())
    digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.digest()
