"""AWQ as AutoAWQ writes it, version "gemm": four bits, a scale and a zero for each group of inputs and output.

W[m, n] = (q[n, m] - zero[n // group, m]) * scale[n // group, m]. A word holds eight outputs of one input, in the order
of AutoAWQ's kernels: https://github.com/casper-hansen/AutoAWQ, `awq/modules/linear/gemm.py`.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from ..tensor_files import StoredTensor
from .config import read_choice, read_group_size
from .matrix import QuantizedFiles, QuantizedMatrix
from .packed import unpack_words

PARTS = ("qweight", "qzeros", "scales")
# Where in a word each of its eight outputs lies.
_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]
_OUTPUTS = 8


def awq_matrices(config: Mapping[str, Any], files: QuantizedFiles) -> dict[str, QuantizedMatrix]:
    """The matrices of all modules that have a qweight; ZweaveError for parts that do not fit together."""
    read_choice(config, "bits", "w_bit", among=[4])
    read_choice(config, "version", "format", among=["gemm"], default="gemm")
    group = read_group_size(config, "group_size", "q_group_size")
    matrices: dict[str, QuantizedMatrix] = {}
    for module in files.modules("qweight"):
        inputs, words = files.packed(module, "qweight")
        size = group or inputs
        if inputs % size:
            raise files.unusable(
                f"{module}.qweight", f"has {inputs} inputs, which groups of {size} do not divide"
            )
        qweight = files.part(module, "qweight", ("I32",))
        qzeros = files.part(module, "qzeros", ("I32",), (inputs // size, words))
        outputs = words * _OUTPUTS
        scales = files.part(module, "scales", ("F16", "BF16", "F32"), (inputs // size, outputs))
        matrices |= files.matrix(
            module, (outputs, inputs), partial(_dequantize, qweight, qzeros, scales, size)
        )
    return matrices


def _dequantize(qweight: StoredTensor, qzeros: StoredTensor, scales: StoredTensor, group: int) -> Tensor:
    values = _outputs(qweight.read()).unflatten(0, (-1, group))
    zeros, scale = (part.unsqueeze(1) for part in (_outputs(qzeros.read()), scales.read().float()))
    return values.sub_(zeros).mul_(scale).flatten(0, 1).T.contiguous()


def _outputs(words: Tensor) -> Tensor:
    """float32 [rows, outputs] of int32 [rows, outputs / 8]."""
    return unpack_words(words, 4)[..., _PLACES].flatten(1).float()
