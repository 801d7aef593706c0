"""The grids of GGUF's types: the values of the gguf package, to the bit."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quant_shape_to_byte_shape

from zweave.checkpoint.gguf.grids import grid_kind, read_grid


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0, Kind.Q4_K], ids=lambda kind: kind.name)
def test_values_are_those_of_the_file(kind: Kind) -> None:
    rng = np.random.default_rng(3)
    rows, width = 5, 768
    stored = rng.integers(0, 256, quant_shape_to_byte_shape((rows, width), kind), dtype=np.uint8)
    block = len(stored[0]) * (256 if kind is Kind.Q4_K else 32) // width
    # The float16 numbers of a block, finite.
    for start in (0, 2) if kind in (Kind.Q4_1, Kind.Q4_K) else (0,):
        numbers = rng.standard_normal((rows, len(stored[0]) // block)).astype(np.float16)
        stored.reshape(rows, -1, block)[:, :, start : start + 2] = numbers[:, :, None].view(np.uint8)
    grid = read_grid(stored, kind.name)
    assert torch.equal(grid.values(), torch.from_numpy(dequantize(stored, kind)))
    assert grid_kind(kind) == kind.name


def test_other_types_lie_on_none() -> None:
    assert not any(map(grid_kind, (Kind.BF16, Kind.F32, Kind.Q6_K, Kind.Q5_0, Kind.IQ4_NL)))
