"""The engine's settings."""

from dataclasses import dataclass

import torch

from zweave.errors import ZweaveError
from zweave.kernels import cpu_isa

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """dtype: "bfloat16" or "float32", of weights, activations and cache.
    device: "cpu", or a CUDA device, where so far only the SVF products have kernels of their own and the
        rest runs in PyTorch.
    slots: how many experts and mixtures are resident at once, besides the base.
    max_sequences: how many requests one step may work on.
    max_batch_tokens: how many tokens one step computes; longer prompts take several steps.
    kv_tokens: token positions that the key-value cache holds for all requests together.
    block_size: token positions in a block of the cache.
    """

    dtype: str = "bfloat16"
    device: str = "cpu"
    slots: int = 64
    max_sequences: int = 64
    max_batch_tokens: int = 512
    kv_tokens: int = 16384
    block_size: int = 16

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ZweaveError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        for name in ("slots", "max_sequences", "max_batch_tokens", "kv_tokens", "block_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ZweaveError(f"{name} must be an integer of at least 1, not {value!r}")
        if self.max_batch_tokens < self.max_sequences:
            raise ZweaveError(
                f"max_batch_tokens ({self.max_batch_tokens}) must be at least max_sequences ({self.max_sequences})"
            )
        if self.kv_tokens < self.block_size:
            raise ZweaveError(f"kv_tokens ({self.kv_tokens}) must hold a block of {self.block_size} tokens")
        self._check_device()

    def _check_device(self) -> None:
        try:
            device = torch.device(self.device)
        except (RuntimeError, TypeError):
            raise ZweaveError(f"unknown device {self.device!r}: use 'cpu' or 'cuda'") from None
        if device.type not in ("cpu", "cuda"):
            raise ZweaveError(f"device {self.device!r} is not supported: use 'cpu' or 'cuda'")
        if device.type == "cpu":
            try:
                cpu_isa()
            except RuntimeError as error:
                raise ZweaveError(str(error).splitlines()[0]) from None
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ZweaveError("no CUDA device is available to this torch: use device='cpu'")

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)
