"""Which launches are dependent ones; what they compile to is in compile/test_dependent_launches.py."""

import pytest

from zweave.kernels.triton import pdl
from zweave.kernels.triton.gemm_config import Device

pytest.importorskip("triton")


def test_launches_are_dependent_from_sm_90_on_where_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    chips = [Device(capability, 132) for capability in ((8, 0), (8, 9), (9, 0), (12, 0))]
    monkeypatch.setattr(pdl, "device_of", chips.__getitem__)

    def dependent() -> list[bool]:
        options = [pdl.launch_options(i) for i in range(len(chips))]
        assert all(option["PDL"] == option["launch_pdl"] for option in options)
        return [option["PDL"] for option in options]

    assert dependent() == [False] * 4
    with pdl.dependent_launches():
        assert dependent() == [False, False, True, True]
        with pdl.dependent_launches(False):
            assert dependent() == [False] * 4
    assert dependent() == [False] * 4
