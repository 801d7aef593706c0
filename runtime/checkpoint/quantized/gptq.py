"""GPTQ as AutoGPTQ and GPTQModel write it: four or eight bits, a scale and a zero for each group of inputs and output.

W[m, n] = (q[n, m] - zero[g, m]) * scale[g, m] with g = g_idx[n], which act order permutes. A word holds neighbouring
inputs of q and neighbouring outputs of zero. In the format "gptq" (v1) what is stored are words of zeros less one each,
with a borrow from the next, as GPTQModel writes and reads them; in "gptq_v2" the zeros themselves:
https://github.com/ModelCloud/GPTQModel, `gptqmodel/utils/model.py`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...errors import ZweaveError
from ..tensor_files import StoredTensor
from .config import read_choice, read_group_size
from .matrix import QuantizedFiles, QuantizedMatrix
from .packed import unpack_words

PARTS = ("qweight", "qzeros", "scales", "g_idx")
# One for each integer of a word.
_ONES = {4: 0x11111111, 8: 0x01010101}


def gptq_matrices(config: Mapping[str, Any], files: QuantizedFiles) -> dict[str, QuantizedMatrix]:
    """The matrices of all modules that have a qweight; ZweaveError for parts that do not fit together."""
    bits = read_choice(config, "bits", among=[4, 8])
    version = read_choice(config, "checkpoint_format", "format", among=["gptq", "gptq_v2"], default="gptq")
    add = _ONES[bits] if version == "gptq" else 0
    group = read_group_size(config, "group_size")
    _refuse_overrides(config)
    ordered = read_choice(config, "desc_act", among=[True, False], default=False)
    count = 32 // bits
    matrices: dict[str, QuantizedMatrix] = {}
    for module in files.modules("qweight"):
        words, outputs = files.packed(module, "qweight")
        inputs = words * count
        groups = -(-inputs // (group or inputs))
        if outputs % count:
            raise files.unusable(f"{module}.qweight", f"has {outputs} outputs, words of zeros hold {count}")
        qweight = files.part(module, "qweight", ("I32",))
        qzeros = files.part(module, "qzeros", ("I32",), (groups, outputs // count))
        scales = files.part(module, "scales", ("F16", "BF16", "F32"), (groups, outputs))
        # Without act order the groups follow each other, and some writers leave the index out.
        found = ordered or f"{module}.g_idx" in files.stored
        if found:
            files.part(module, "g_idx", ("I32", "I64"), (inputs,))
        groups_of = partial(_group_index, files, module if found else None, inputs, group or inputs, groups)
        read = partial(_dequantize, qweight, qzeros, scales, groups_of, bits, add)
        matrices |= files.matrix(module, (outputs, inputs), read)
    return matrices


def _refuse_overrides(config: Mapping[str, Any]) -> None:
    """ZweaveError where GPTQModel quantised some modules otherwise; those it left alone have no qweight."""
    dynamic = config.get("dynamic") or {}
    if not isinstance(dynamic, dict) or not all(pattern.startswith("-:") for pattern in dynamic):
        raise ZweaveError(
            "quantization_config: dynamic gives some modules bits or groups of their own, which is not supported"
        )


def _group_index(files: QuantizedFiles, module: str | None, inputs: int, group: int, groups: int) -> Tensor:
    """int64 [in_features]: the group of each input; module: whose g_idx says so, if it has one."""
    found = None if module is None else files.indices(module, "g_idx", groups)
    return torch.arange(inputs) // group if found is None else found


def _dequantize(
    qweight: StoredTensor,
    qzeros: StoredTensor,
    scales: StoredTensor,
    groups_of: Callable[[], Tensor],
    bits: int,
    add: int,
) -> Tensor:
    groups = groups_of()
    # int32 wraps around, as the borrow does.
    zeros = unpack_words(qzeros.read() + add, bits).flatten(1).float()
    values = unpack_words(qweight.read(), bits).movedim(-1, 1).flatten(0, 1).float()
    return values.sub_(zeros[groups]).mul_(scales.read().float()[groups]).T.contiguous()
