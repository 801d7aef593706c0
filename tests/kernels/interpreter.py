"""What Triton's interpreter computes otherwise than a device."""

import torch
from torch import Tensor


def cut(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounds as the interpreter does, as float64: to bf16 by cutting off the lower half of a float32."""
    if dtype != torch.bfloat16:
        return value.to(dtype).double()
    return (value.float().view(torch.int32) & -(2**16)).view(torch.float32).double()
