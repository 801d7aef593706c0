"""The parts of an engine, and how they are made of a model and a configuration."""

import warnings
from dataclasses import dataclass
from os import PathLike

from ..checkpoint.checkpoint import resolve_model
from ..checkpoint.model_config import ModelConfig
from ..decomposition.decomposition import Decomposition, decompose
from ..errors import ZweaveError
from ..experts.bank import Bank
from ..io.submit import at_once
from ..kv_cache.block_pool import KVCache
from ..model.gpu_model import GpuModel
from ..model.gpu_weights import GpuWeights
from ..planner.plan import Plan
from ..planner.planner import plan_for
from ..scheduler.block_manager import BlockManager
from ..scheduler.scheduler import Scheduler
from ..text.tokenizer import Tokenizer
from .config import EngineConfig
from .first_pass import FirstPassManager
from .gpu.backend import Backend, backend_of
from .gpu.gpu_runner import GpuRunner
from .input_processor import InputProcessor
from .model_runner import ModelRunner
from .output_processor import OutputProcessor
from .step import Runner


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What an engine consists of, in the order in which a request meets it."""

    tokenizer: Tokenizer
    bank: Bank
    input_processor: InputProcessor
    first_passes: FirstPassManager
    scheduler: Scheduler
    blocks: BlockManager
    runner: Runner
    output_processor: OutputProcessor


def load_parts(model: str | PathLike[str], config: EngineConfig) -> EngineParts:
    """Loads a model, decomposes it if that was never done, and makes the parts that serve it."""
    checkpoint = resolve_model(model)
    decomposition = decompose(checkpoint)
    tokenizer = Tokenizer(checkpoint.directory)
    shapes = checkpoint.config.adapted_shapes()
    plan = plan_for(
        {name: shapes[name] for name in decomposition.names},
        config.plans_for,
        config.torch_dtype,
        config.max_memory,
        config.max_error,
        bool(config.batch_invariant),
    )
    backend = None if config.plans_for == "cpu" else backend_of(config.torch_device)
    bank, cache = _allocate(checkpoint.config, decomposition, plan, config, backend)
    max_length = min(_max_model_len(config, checkpoint.config), cache.num_blocks * cache.block_size)
    runner: Runner
    if backend is None:
        runner = ModelRunner(config, checkpoint, decomposition, plan, bank, cache, max_length)
    else:
        dtype, device = config.torch_dtype, config.torch_device
        weights = GpuWeights(checkpoint, decomposition, bank, plan, dtype, device, backend.ops)
        model = GpuModel(weights, checkpoint.config, cache, max_length, backend.ops)
        runner = GpuRunner(model, bank.tables, cache, backend, max_length, config.max_sequences)
    blocks = BlockManager(cache, config.prefix_cache)
    scheduler = Scheduler(blocks, bank, config.max_sequences, config.max_batch_tokens)
    input_processor = InputProcessor(
        tokenizer,
        bank,
        checkpoint.config.vocab_size,
        runner.max_length,
        is_cache_limit=runner.max_length < checkpoint.config.max_position,
    )
    first_passes = FirstPassManager(config, input_processor, scheduler, bank, checkpoint.config.num_layers)
    return EngineParts(
        tokenizer=tokenizer,
        bank=bank,
        input_processor=input_processor,
        first_passes=first_passes,
        scheduler=scheduler,
        blocks=blocks,
        runner=runner,
        output_processor=OutputProcessor(scheduler, first_passes, tokenizer.eos_ids),
    )


def _max_model_len(config: EngineConfig, model: ModelConfig) -> int:
    """Tokens of a sequence that the user asks for, else those that the model is made for."""
    if config.max_model_len is None:
        return model.default_max_model_len
    if config.max_model_len > model.max_position:
        warnings.warn(
            f"max_model_len {config.max_model_len}: the model is made for {model.max_position} tokens; "
            "what it says beyond them may be worthless",
            stacklevel=2,
        )
    return config.max_model_len


def _allocate(
    model_config: ModelConfig,
    decomposition: Decomposition,
    plan: Plan,
    config: EngineConfig,
    backend: Backend | None,
) -> tuple[Bank, KVCache]:
    """The tables and the cache whose sizes the user sets; ZweaveError if there is no memory for them."""
    submit = backend.submit if backend is not None else at_once
    try:
        bank = Bank(
            {name: decomposition.sigma(name) for name in decomposition.names},
            slots=config.slots + 1,
            device=config.torch_device,
            base_digest=decomposition.digest,
            plan=plan,
            max_error=config.max_error,
        )
        num_blocks = config.kv_tokens // config.block_size
        cache = KVCache(
            model_config,
            num_blocks,
            config.block_size,
            config.torch_dtype,
            config.torch_device,
            packed=backend is None,
            submit=submit,
        )
    except RuntimeError as error:
        raise ZweaveError(
            f"no memory for {config.slots} slots and {config.kv_tokens} kv_tokens: lower them "
            f"({str(error).splitlines()[0][:80]})"
        ) from None
    return bank, cache
