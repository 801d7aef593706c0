"""The engine's settings."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from zweave.kernels import cpu_isa

from ..device import parse_device
from ..errors import ZweaveError
from ..names import KV_TOKENS, LORA_COMPONENTS, MAX_SEQUENCES, SLOTS, WEIGHTS
from ..validation import (
    as_integer,
    as_number,
    check_flag,
    check_integer,
    is_integer,
    is_number,
    normalise,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


# None: what a kind of device wants. No field is None once the configuration is made, but for `kv_tokens` on CUDA.
_FILLED_IN: Any = None
_ON_GPU = {"max_batch_tokens": 2048, "block_size": 32, "batch_invariant": False, "lora_components": 0}
_ON_CPU = {
    "max_batch_tokens": 512,
    "block_size": 16,
    "batch_invariant": True,
    "kv_tokens": KV_TOKENS,
    "lora_components": LORA_COMPONENTS,
}
_DEFAULTS: dict[str, dict[str, int]] = {"cuda": _ON_GPU, "reference": _ON_GPU | {"kv_tokens": KV_TOKENS}}


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What an engine is told when it is made; raises ZweaveError for values that it cannot work with.

    dtype: "bfloat16" or "float32", of weights, activations and cache.
    weights: "auto": of `dtype`; "grid": matrices that a GGUF file brings in four or eight bits stay on that grid,
        values as in the file, and experts are added by U and V in int8 and int4 (docs/planner.md); "refit": all that is
        kept of a matrix are the factors in int4 and int8 that `zweave quantize` has made (docs/quantization.md). On a
        GPU U and V stay beside a grid as they are, or in int8 under `max_memory` or `batch_invariant`.
    device: "cpu", a CUDA device, or "reference": the steps of a CUDA device on a CPU, with PyTorch in the place of
        kernels, to find out what goes wrong on a GPU without one.
    slots: experts and mixtures resident at once, besides the base.
    lora_components: components of LoRAs resident at once, a multiple of 16: 512 are 32 adapters of rank 16. Memory is
        taken as they are loaded on a CPU, and at once on a GPU. None: 512 on a CPU, none on a GPU.
    max_sequences: requests that one step may work on.
    max_batch_tokens: tokens that one step computes; longer prompts take several steps. None: 512 on a CPU, 2048 on a
        GPU, which is busy from there on.
    kv_tokens: token positions in the KV cache, for all requests together. None: 16384 on a CPU, on a GPU as many as
        its memory has room for.
    max_model_len: tokens that a prompt and its answer may have together; None for what the model is made for.
    block_size: token positions in a block of the cache, an even number in bfloat16 on a CPU, a power of two on a GPU.
        None: 16 on a CPU, 32 on a GPU.
    prefix_cache: keys and values stay in the cache when a request ends, for requests with the same prefix, and are
        shared by requests that run at once; results are the same (docs/kv_cache.md).
    max_memory: bytes for the weights of the adapted matrices; None for as many as the fastest modes take.
    max_error: what of a matrix an expert may lose for a cheaper mode, as a share of the matrix's spectral norm.
    batch_invariant: a token's mode follows from its own slot and this configuration alone, so that its result
        is the same bit for bit whatever shares the batch. False lets the planner look at the batch, and
        merge the weights of experts in steady use. None: True on a CPU, False on a GPU, where it costs time.
    dependent_launches: on a GPU of compute capability 9.0 or newer a kernel starts while the one before it still ends,
        and fetches weights meanwhile. Results are the same. Off until it is measured.
    merge_memory: bytes for merged weights, 0 for none; needs batch_invariant=False and a CPU.
    dispatch_timeout: seconds after which a call of a blocking dispatcher fails.
    on_dispatch_error: what happens if a request's dispatcher raises, takes too long or names an unknown expert:
        "error" ends the request with the reason, "base" lets the base model answer.
    """

    dtype: str = "bfloat16"
    weights: str = "auto"
    device: str = "cpu"
    slots: int = SLOTS
    lora_components: int = _FILLED_IN
    max_sequences: int = MAX_SEQUENCES
    max_batch_tokens: int = _FILLED_IN
    kv_tokens: int | None = None
    max_model_len: int | None = None
    block_size: int = _FILLED_IN
    prefix_cache: bool = True
    max_memory: int | None = None
    max_error: float = 0.0
    batch_invariant: bool = _FILLED_IN
    dependent_launches: bool = False
    merge_memory: int = 0
    dispatch_timeout: float = 10.0
    on_dispatch_error: Literal["base", "error"] = "error"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ZweaveError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        if self.weights not in WEIGHTS:
            raise ZweaveError(f"weights must be one of {', '.join(WEIGHTS)}, not {self.weights!r}")
        self._fill_in()
        counts = ("slots", "max_sequences", "max_batch_tokens", "block_size")
        normalise(
            self,
            (*counts, "lora_components", "kv_tokens", "max_model_len", "max_memory", "merge_memory"),
            as_integer,
        )
        normalise(self, ("max_error", "dispatch_timeout"), as_number)
        for name in counts:
            check_integer(name, getattr(self, name), 1)
        check_integer("lora_components", self.lora_components, 0)
        if self.max_model_len is not None:
            check_integer("max_model_len", self.max_model_len, 2)
        if self.max_batch_tokens < self.max_sequences:
            raise ZweaveError(
                f"max_batch_tokens ({self.max_batch_tokens}) must be at least max_sequences ({self.max_sequences})"
            )
        if self.block_size % 2 and self.dtype == "bfloat16" and self.plans_for == "cpu":
            raise ZweaveError(f"block_size must be even for bfloat16 on a CPU, not {self.block_size}")
        if self.plans_for == "gpu" and self.block_size & (self.block_size - 1):
            raise ZweaveError(f"block_size must be a power of two on a GPU, not {self.block_size}")
        if self.kv_tokens is not None:
            check_integer("kv_tokens", self.kv_tokens, 1)
        if self.kv_tokens is not None and self.kv_tokens < self.block_size:
            raise ZweaveError(f"kv_tokens ({self.kv_tokens}) must hold a block of {self.block_size} tokens")
        self._check_plan()
        self._check_dispatch()
        self._check_device()

    def _fill_in(self) -> None:
        """Sets what was left to the kind of device."""
        defaults = _DEFAULTS.get(str(self.device).partition(":")[0], _ON_CPU)
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def _check_plan(self) -> None:
        for name, least in (("max_memory", 1), ("merge_memory", 0)):
            value = getattr(self, name)
            if name == "max_memory" and value is None:
                continue
            if not (is_integer(value) and value >= least):
                raise ZweaveError(f"{name} must be a number of bytes of at least {least}, not {value!r}")
        error = self.max_error
        if not (is_number(error) and 0 <= error < 1):
            raise ZweaveError(f"max_error must be a share from 0 to below 1, not {error!r}")
        for name in ("batch_invariant", "dependent_launches", "prefix_cache"):
            check_flag(name, getattr(self, name))
        if self.merge_memory and self.plans_for != "cpu":
            raise ZweaveError("merge_memory is for device='cpu'")
        if self.weights == "refit" and self.merge_memory:
            raise ZweaveError("merge_memory is not for weights='refit', which keep nothing to merge")
        if self.merge_memory and self.batch_invariant:
            raise ZweaveError(
                "merge_memory needs batch_invariant=False: a merged expert changes its results' bits"
            )

    def _check_dispatch(self) -> None:
        timeout = self.dispatch_timeout
        if not (is_number(timeout) and 0 < timeout <= 86400):
            raise ZweaveError(f"dispatch_timeout must be seconds above 0 and at most a day, not {timeout!r}")
        if self.on_dispatch_error not in ("base", "error"):
            raise ZweaveError(f"on_dispatch_error must be 'base' or 'error', not {self.on_dispatch_error!r}")

    def _check_device(self) -> None:
        if self.device == "reference":
            return
        device = parse_device(self.device)
        if device.type == "cpu":
            try:
                cpu_isa()
            except RuntimeError as error:
                raise ZweaveError(str(error).splitlines()[0]) from None

    @property
    def plans_for(self) -> Literal["cpu", "gpu"]:
        """The kind of device whose modes are planned."""
        return "cpu" if str(self.device).partition(":")[0] == "cpu" else "gpu"

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def torch_device(self) -> torch.device:
        return torch.device("cpu" if self.device == "reference" else self.device)
