"""Running sums of hidden states over tokens, in float64 and in the order of the tokens.

One addition a token, so that a sum does not depend on where a chunk of a prompt ends.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Sum: TypeAlias = npt.NDArray[np.float64]


def running_sums(before: Sum | None, states: Tensor) -> Sum:
    """Sums up to each token.

    before: the sum so far [hidden], None for nothing.
    states: [tokens, hidden] float32.
    Returns [tokens, hidden].
    """
    values = states.cpu().numpy().astype(np.float64)
    if before is not None:
        values[0] += before
    return np.add.accumulate(values, axis=0, out=values)


def mean_state(total: Sum, num_tokens: int) -> Tensor:
    """The mean of states that add up to `total`, [hidden] float32."""
    return torch.from_numpy(total / num_tokens).float()
