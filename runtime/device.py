"""The device that a user names."""

import torch

from .errors import ZweaveError


def parse_device(name: str) -> torch.device:
    """The device of a name such as "cpu", "cuda" or "cuda:1"; ZweaveError if it is unknown or not there."""
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ZweaveError(f"unknown device {name!r}: use 'cpu' or 'cuda'") from None
    if device.type not in ("cpu", "cuda"):
        raise ZweaveError(f"device {name!r} is not supported: use 'cpu' or 'cuda'")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ZweaveError("no CUDA device is available to this torch: use device='cpu'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ZweaveError(f"there is no {name}: this torch sees {torch.cuda.device_count()} CUDA devices")
    return device
