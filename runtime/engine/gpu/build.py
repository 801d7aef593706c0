"""Makes the runner of a GPU: the weights first, then a cache in the memory that they leave."""

import logging

import torch

from zweave.kernels import LIBRARY_FROM

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.model_config import ModelConfig
from ...decomposition.decomposition import Decomposition
from ...errors import ZweaveError
from ...experts.bank import Bank
from ...kv_cache.block_pool import KVCache
from ...model.gpu_model import GpuModel
from ...model.gpu_weights import GpuWeights
from ...model.held_weights import HeldWeights
from ...planner.gpu_cost import rates_of
from ...planner.gpu_report import InvariancePrice
from ...planner.plan import Plan
from ..config import EngineConfig
from .backend import Backend, backend_of
from .gpu_runner import GpuRunner

# Share of a device's memory that the cache leaves to others, and to graphs.
_RESERVE = 0.08


def gpu_runner(
    config: EngineConfig,
    checkpoint: Checkpoint,
    decomposition: Decomposition,
    plan: Plan,
    bank: Bank,
    max_model_len: int,
    held: HeldWeights,
) -> GpuRunner:
    """The runner of `config.device`; ZweaveError if its memory is too small."""
    backend = backend_of(config.device, config.dependent_launches)
    if config.batch_invariant and not held.plan:
        _log_price(checkpoint.config, config, backend.device)
    library_from = None if config.batch_invariant else LIBRARY_FROM
    try:
        weights = GpuWeights(
            checkpoint,
            decomposition,
            bank,
            plan,
            held,
            config.torch_dtype,
            backend.device,
            backend.ops,
            library_from,
        )
        model = GpuModel(weights, checkpoint.config, max_model_len, backend.ops)
    except torch.OutOfMemoryError as error:
        raise ZweaveError(
            f"no memory for the weights: set max_memory lower ({str(error).splitlines()[0][:80]})"
        ) from None
    model.cache = _cache(config, checkpoint.config, backend)
    max_length = min(max_model_len, model.cache.num_blocks * model.cache.block_size)
    return GpuRunner(model, bank, model.cache, backend, max_length, config.max_sequences)


def _log_price(model: ModelConfig, config: EngineConfig, device: torch.device) -> None:
    """Says what `batch_invariant=True` costs, since it is not what a GPU does of itself."""
    rates = rates_of(torch.cuda.get_device_name(device) if device.type == "cuda" else None)
    line = InvariancePrice.of(model, config.torch_dtype.itemsize, rates).line(rates)
    logging.getLogger("zweave").info(line)


def _cache(config: EngineConfig, model: ModelConfig, backend: Backend) -> KVCache:
    """The cache that the user asks for, or as much as the device has memory for."""
    block_bytes = (
        2 * model.num_layers * model.num_kv_heads * model.head_dim * config.block_size
    ) * config.torch_dtype.itemsize
    if config.kv_tokens is not None:
        num_blocks = config.kv_tokens // config.block_size
    else:
        num_blocks = _bytes_left(config, model, backend.device) // block_bytes
        if num_blocks < 1:
            raise ZweaveError("the weights leave no memory for a KV cache: set max_memory lower")
    try:
        return KVCache(
            model,
            num_blocks,
            config.block_size,
            config.torch_dtype,
            backend.device,
            packed=False,
            submit=backend.submit,
        )
    except RuntimeError as error:
        raise ZweaveError(
            f"no memory for {config.kv_tokens} kv_tokens: lower them ({str(error).splitlines()[0][:80]})"
        ) from None


def _bytes_left(config: EngineConfig, model: ModelConfig, device: torch.device) -> int:
    """Bytes that a cache may take of a device: what is free, less a reserve and what the largest step needs."""
    free, total = torch.cuda.mem_get_info(device)
    width = 4 * model.hidden_size + 3 * model.intermediate_size
    step = config.max_batch_tokens * width * 4 + 4 * config.max_sequences * model.vocab_size * 4
    return max(0, int(free - _RESERVE * total - step))
