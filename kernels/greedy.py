"""The most likely token of each row of logits.

    id[b] = the first i with logits[b, i] = max over j of logits[b, j]

    logits [B, V]   ->   id [B], finite [B]

Bytes: 4 B V once; a search for the largest value and a check for NaN and infinity in one pass.
"""

import torch
from torch import Tensor


def greedy_ref(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Semantics: argmax of each row, and whether all its values are finite; 0 for a row that is not."""
    finite = logits.isfinite().all(-1)
    return logits.argmax(-1).where(finite, 0), finite


def greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Semantics: the index of each row's largest value, the lowest on a tie, and whether the row is finite.

    logits: [rows, vocabulary], float32; rows may lie apart.
    Returns id [rows] int64, 0 for a row that is not finite, and finite [rows] bool.
    Raises: RuntimeError on a wrong shape, stride, dtype or device, or an empty vocabulary.
    """
    return torch.ops.zweave.greedy.default(logits)
