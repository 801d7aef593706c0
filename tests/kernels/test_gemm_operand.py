"""What the Triton GEMM takes for rows in line."""

import pytest
import torch

from zweave.kernels.triton.gemm_operand import Operand

pytest.importorskip("triton")


@pytest.mark.parametrize(
    ("rows", "stride", "aligned"), [(1, 35, True), (2, 48, True), (2, 35, False)], ids=str
)
def test_a_single_row_is_in_line_whatever_its_stride(rows, stride, aligned) -> None:
    x = torch.zeros(rows * 48, dtype=torch.bfloat16).as_strided((rows, 32), (stride, 1))
    operand = Operand(x, torch.zeros(64, 32, dtype=torch.bfloat16))
    assert operand.aligned == aligned
    assert operand.fields[5] == (0 if rows == 1 else stride)
