"""Brings what an edit computes on the host to the logits."""

from torch import Tensor


def beside(values: Tensor, logits: Tensor) -> Tensor:
    """Values on the host, on the device of the logits; nothing waits for the device."""
    if not logits.is_cuda:
        return values
    # From memory that is not pinned the copy would wait.
    return values.pin_memory().to(logits.device, non_blocking=True)
