"""The roofs of whatever a GPU bench runs on."""

import torch

from .harness import Provider


def device_roof_providers(device: str, dtype: torch.dtype) -> list[Provider]:
    """Candidates for the roofs of "cuda", or of the CPU for "reference"."""
    if device == "cuda":
        from .cuda_roofs import cuda_roof_providers

        return cuda_roof_providers(dtype)
    from .cpu_roofs import roof_providers

    return roof_providers(dtype)
