"""How the Triton GEMM is cut into tiles, steps and splits."""

from itertools import product

import pytest

from zweave.kernels.triton.gemm_config import split_size, tile_config

from .compiled import DEVICES
from .gemm_kernels import OUT_FEATURES, TOKENS, WEIGHTS

pytest.importorskip("triton")


def test_the_order_of_a_sum_does_not_depend_on_the_tokens() -> None:
    for weights, device in product(WEIGHTS.values(), DEVICES.values()):
        for out_features, in_features in product(OUT_FEATURES, (576, 4096, 14336)):
            size = split_size(out_features, in_features, device)
            configs = {
                tile_config(t, out_features, weights.dtype, weights.scales, device, True) for t in TOKENS
            }
            assert len(configs) > 1
            assert len({config.block_n for config in configs}) == 1
            assert all(size % config.block_n == 0 for config in configs)


def test_splits_fill_a_large_chip_and_are_not_too_short() -> None:
    device = DEVICES[90]
    assert split_size(4096, 4096, device) == 1024
    assert split_size(14336, 4096, device) == 4096
    assert split_size(1024, 4096, device) == 1024
    assert split_size(576, 1536, device) == 384
    assert split_size(64, 1, device) == 128
    assert split_size(64, 0, device) == 128
