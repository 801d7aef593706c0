"""Weights in fp8 (e4m3) with a scale for the whole matrix, each output, or each block.

W[m, n] = q[m, n] * scale[m // rows, n // columns], also where the scale is called weight_scale_inv, as DeepSeek did.
Blocks at the end may be smaller. Scales of activations and of keys and values concern none of this and are left out.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from ...errors import ZweaveError
from ..tensor_files import StoredTensor
from .config import read_blocks, read_choice, read_integer, read_weight_groups
from .matrix import QuantizedFiles, QuantizedMatrix

FP8 = "F8_E4M3"
SCALES = ("weight_scale", "weight_scale_inv")
UNUSED = ("input_scale", "output_scale", "activation_scale", "k_scale", "v_scale", "q_scale")
_SCALE_DTYPES = ("F32", "BF16", "F16", "F8_E8M0")

# Rows and columns of W that share a scale; None means all of them.
Span = tuple[int | None, int | None]


def fp8_matrices(config: Mapping[str, Any], files: QuantizedFiles) -> dict[str, QuantizedMatrix]:
    """The matrices of a checkpoint whose quant_method is "fp8"; ZweaveError for parts that do not fit together."""
    read_choice(config, "fmt", among=["e4m3"], default="e4m3")
    return _matrices(files, [read_blocks(config, "weight_block_size") or (None, None)])


def float_quantized_matrices(config: Mapping[str, Any], files: QuantizedFiles) -> dict[str, QuantizedMatrix]:
    """The same for compressed-tensors' format "float-quantized", in which groups of modules differ in their blocks."""
    return _matrices(files, [_span(weights) for weights in read_weight_groups(config)])


def _span(weights: Mapping[str, Any]) -> Span:
    read_choice(weights, "type", among=["float"])
    read_choice(weights, "num_bits", among=[8])
    read_choice(weights, "symmetric", among=[True], default=True)
    strategy = read_choice(
        weights, "strategy", among=["tensor", "channel", "group", "block"], default="tensor"
    )
    if strategy == "tensor":
        return None, None
    if strategy == "channel":
        return 1, None
    if strategy == "group":
        return 1, read_integer(weights, "group_size")
    blocks = read_blocks(weights, "block_structure")
    if blocks is None:
        raise ZweaveError("quantization_config: strategy block needs a block_structure")
    return blocks


def _matrices(files: QuantizedFiles, spans: Sequence[Span]) -> dict[str, QuantizedMatrix]:
    scaled = {module for part in SCALES for module in files.modules(part)}
    eights = [module for module in files.modules("weight") if files.stored[f"{module}.weight"].dtype == FP8]
    matrices: dict[str, QuantizedMatrix] = {}
    for module in dict.fromkeys([*eights, *sorted(scaled)]):
        weight = files.part(module, "weight", (FP8,))
        if len(weight.shape) != 2:
            raise files.unusable(weight.name, f"has shape {weight.shape}, a matrix is expected")
        shape = weight.shape[0], weight.shape[1]
        name = next((part for part in SCALES if f"{module}.{part}" in files.stored), SCALES[0])
        scale = files.part(module, name, _SCALE_DTYPES)
        blocks = _blocks(files, scale, shape, spans)
        matrices |= files.matrix(module, shape, partial(_dequantize, weight, scale, blocks))
    return matrices


def _blocks(
    files: QuantizedFiles, scale: StoredTensor, shape: tuple[int, int], spans: Sequence[Span]
) -> tuple[int, int]:
    """Rows and columns that share a scale: those whose grid has the scale's shape."""
    choices = {(rows or shape[0], columns or shape[1]) for rows, columns in spans}
    grids = {blocks: (-(-shape[0] // blocks[0]), -(-shape[1] // blocks[1])) for blocks in choices}
    stored = (1, 1) if scale.shape in ((), (1,)) else scale.shape
    fitting = [blocks for blocks, grid in grids.items() if grid == stored]
    if len(fitting) != 1:
        expected = " or ".join(str(grid) for grid in sorted(set(grids.values())))
        raise files.unusable(scale.name, f"has shape {scale.shape}, its quantization_config means {expected}")
    return fitting[0]


def _dequantize(weight: StoredTensor, scale: StoredTensor, blocks: tuple[int, int]) -> Tensor:
    values = weight.read().float()
    scales = scale.read().float().reshape(-1, -(-values.shape[1] // blocks[1]))
    columns = scales.repeat_interleave(blocks[1], 1)[:, : values.shape[1]]
    if blocks[0] == 1:
        return values.mul_(columns)
    for rows, each in zip(values.split(blocks[0]), columns, strict=True):
        rows.mul_(each)
    return values
