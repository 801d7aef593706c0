"""Integers as compressed-tensors writes them: four or eight bits, a scale for the matrix, each output, or each group.

W[m, n] = (q[m, n] - zero[m, g]) * scale[m, g] with g = n // group_size, or g_idx[n], which act order permutes. In the
format "pack-quantized" a word of weight_packed holds neighbouring inputs of q, one of weight_zero_point neighbouring
outputs of zero, each as an unsigned number around 2 ** (bits - 1), and weight_shape says how many there are; in
"int-quantized" both are bytes: https://github.com/vllm-project/compressed-tensors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..tensor_files import StoredTensor
from .config import read_choice, read_integer, read_weight_groups
from .fp8 import float_quantized_matrices
from .matrix import QuantizedFiles, QuantizedMatrix
from .packed import unpack_words

PARTS = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")
_SCALES = ("F32", "BF16", "F16")


@dataclass(frozen=True, slots=True)
class _Span:
    """How some modules are quantised.

    group: inputs that share a scale, None for all.
    outputs_differ: whether each output has scales of its own.
    """

    bits: int
    symmetric: bool
    outputs_differ: bool
    group: int | None

    def scale_shape(self, outputs: int, inputs: int) -> tuple[int, int]:
        return outputs if self.outputs_differ else 1, -(-inputs // (self.group or inputs))


def compressed_matrices(config: Mapping[str, Any], files: QuantizedFiles) -> dict[str, QuantizedMatrix]:
    """The matrices of a checkpoint whose quant_method is "compressed-tensors".

    Raises ZweaveError for a format that is not supported, and for parts that do not fit together.
    """
    formats: dict[str, Callable[[Mapping[str, Any], QuantizedFiles], dict[str, QuantizedMatrix]]] = {
        "float-quantized": float_quantized_matrices,
        "pack-quantized": partial(_integer_matrices, codes_of=_words),
        "int-quantized": partial(_integer_matrices, codes_of=_bytes),
    }
    return formats[read_choice(config, "format", among=list(formats))](config, files)


# q, its shape, and the bits that it may have.
_Codes = tuple[Callable[[int], Tensor], tuple[int, int], Callable[[int], bool]]


def _integer_matrices(
    config: Mapping[str, Any],
    files: QuantizedFiles,
    codes_of: Callable[[QuantizedFiles, str], _Codes],
) -> dict[str, QuantizedMatrix]:
    spans = [_span(weights) for weights in read_weight_groups(config)]
    matrices: dict[str, QuantizedMatrix] = {}
    for module in files.modules("weight_scale"):
        codes, (outputs, inputs), may_have = codes_of(files, module)
        scale = files.part(module, "weight_scale", _SCALES)
        span = _fitting(files, scale, (outputs, inputs), [span for span in spans if may_have(span.bits)])
        shape = span.scale_shape(outputs, inputs)
        zeros = _zeros(files, module, span, shape)
        if f"{module}.weight_g_idx" in files.stored:
            files.part(module, "weight_g_idx", ("I32", "I64"), (inputs,))
        groups_of = partial(_groups, files, module, inputs, span.group or inputs, shape[1])
        read = partial(_dequantize, partial(codes, span.bits), scale, zeros, groups_of, shape)
        matrices |= files.matrix(module, (outputs, inputs), read)
    return matrices


def _span(weights: Mapping[str, Any]) -> _Span:
    read_choice(weights, "type", among=["int"], default="int")
    bits = read_choice(weights, "num_bits", among=[4, 8])
    symmetric = read_choice(weights, "symmetric", among=[True, False], default=True)
    default = "group" if weights.get("group_size") else "tensor"
    strategy = read_choice(weights, "strategy", among=["tensor", "channel", "group"], default=default)
    group = read_integer(weights, "group_size") if strategy == "group" else None
    return _Span(bits, symmetric, strategy != "tensor", group)


def _words(files: QuantizedFiles, module: str) -> _Codes:
    outputs, words = files.packed(module, "weight_packed")
    stored = files.part(module, "weight_shape", ("I64", "I32"), (2,))
    rows, inputs = stored.read().tolist()
    if rows != outputs or inputs < 1:
        raise files.unusable(stored.name, f"says {rows} x {inputs}, weight_packed has {outputs} outputs")
    packed = files.part(module, "weight_packed", ("I32",))

    def read(bits: int) -> Tensor:
        return unpack_words(packed.read(), bits).flatten(1)[:, :inputs].float().sub_(1 << (bits - 1))

    return read, (outputs, inputs), lambda bits: -(-inputs * bits // 32) == words


def _bytes(files: QuantizedFiles, module: str) -> _Codes:
    weight = files.part(module, "weight", ("I8",))
    if len(weight.shape) != 2:
        raise files.unusable(weight.name, f"has shape {weight.shape}, a matrix is expected")
    return lambda bits: weight.read().float(), (weight.shape[0], weight.shape[1]), lambda bits: True


def _fitting(
    files: QuantizedFiles, scale: StoredTensor, shape: tuple[int, int], spans: Sequence[_Span]
) -> _Span:
    """The span whose scales have the shape of the stored ones."""
    stored = (1, 1) if scale.shape in ((), (1,)) else scale.shape
    fitting = {span for span in spans if span.scale_shape(*shape) == stored}
    if len(fitting) != 1:
        expected = " or ".join(str(each) for each in sorted({span.scale_shape(*shape) for span in spans}))
        raise files.unusable(
            scale.name, f"has shape {scale.shape}, its quantization_config means {expected or 'other bits'}"
        )
    return fitting.pop()


def _zeros(
    files: QuantizedFiles, module: str, span: _Span, shape: tuple[int, int]
) -> Callable[[], Tensor] | None:
    """What reads the zeros, float32 of the scales' shape; None where there are none."""
    name = f"{module}.weight_zero_point"
    if span.symmetric and name not in files.stored:
        return None
    found = files.part(module, "weight_zero_point", ("I8", "I32"))
    if found.dtype == "I8":
        if ((1, 1) if found.shape in ((), (1,)) else found.shape) != shape:
            raise files.unusable(name, f"has shape {found.shape}, its quantization_config means {shape}")
        return lambda: found.read().float().reshape(shape)
    files.part(module, "weight_zero_point", ("I32",), (-(-shape[0] * span.bits // 32), shape[1]))
    return lambda: (
        unpack_words(found.read(), span.bits).movedim(-1, 1).flatten(0, 1)[: shape[0]].float()
        - (1 << (span.bits - 1))
    )


def _groups(files: QuantizedFiles, module: str, inputs: int, group: int, groups: int) -> Tensor:
    """int64 [in_features]: the group of each input."""
    found = None
    if f"{module}.weight_g_idx" in files.stored:
        # As the format's own reader takes it: -1 stands for an index that was never set.
        found = files.indices(module, "weight_g_idx", groups, unset=-1)
    return torch.arange(inputs) // group if found is None else found


def _dequantize(
    codes: Callable[[], Tensor],
    scale: StoredTensor,
    zeros: Callable[[], Tensor] | None,
    groups_of: Callable[[], Tensor],
    shape: tuple[int, int],
) -> Tensor:
    groups, values = groups_of(), codes()
    if zeros is not None:
        values.sub_(zeros()[:, groups])
    return values.mul_(scale.read().float().reshape(shape)[:, groups])
