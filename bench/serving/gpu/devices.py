"""Where the benches of the GPU engine run: on a CUDA device, or on a CPU with PyTorch in the place of kernels."""

import torch

from zweave.errors import ZweaveError


def check_device(device: str) -> None:
    """Raises ZweaveError if the device is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ZweaveError("no CUDA device is available to this torch: `--device reference` tries the bench")


def notes_of(device: str) -> list[str]:
    """What must be said of times on a device."""
    if device == "cuda":
        return []
    return ["Times of the reference device say nothing: no kernel of ours runs on it."]
