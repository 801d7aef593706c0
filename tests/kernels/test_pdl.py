"""Which launches are dependent ones; what they compile to is in compile/test_dependent_launches.py."""

import pytest

from zweave.kernels.triton.gemm_config import Device
from zweave.kernels.triton.pdl import pdl_on, use_pdl

pytest.importorskip("triton")


def test_launches_are_dependent_from_sm_90_on_once_that_is_wanted() -> None:
    chips = [Device(capability, 132) for capability in ((8, 0), (8, 9), (9, 0), (12, 0))]
    assert not any(map(pdl_on, chips))
    use_pdl(True)
    try:
        assert list(map(pdl_on, chips)) == [False, False, True, True]
    finally:
        use_pdl(False)
