"""How far a kernel may lie from the float64 reference, by dtype: (rtol, atol) for results of size one."""

import torch

TOLERANCES = {
    # Sums of up to some thousand products: their rounding errors add up to some dozens of 2**-24.
    torch.float32: (1e-5, 1e-5),
    # The result is rounded once, by 2**-9 at most; an intermediate that rounds the other way adds as much.
    torch.bfloat16: (2**-8, 2**-7),
    # Tests round what they expect as well: a unit in the last place, 2**-10 at most, where both go different ways.
    torch.float16: (2**-10, 2**-10),
}
