"""The parts of an engine, and how they are made of a model and a configuration."""

import warnings
from dataclasses import dataclass
from os import PathLike

from ..adapters.component_pool import ComponentOrder, ComponentPool
from ..checkpoint.checkpoint import Checkpoint, resolve_model
from ..checkpoint.model_config import ModelConfig
from ..decomposition.decomposition import Decomposition, decompose
from ..decomposition.refit.quantized_model import QuantizedModel
from ..errors import ZweaveError
from ..experts.bank import Bank
from ..kv_cache.block_pool import KVCache
from ..model.held_weights import HeldWeights
from ..planner.plan import Plan
from ..planner.planner import plan_for
from ..scheduler.block_manager import BlockManager
from ..scheduler.scheduler import Scheduler
from ..text.tokenizer import Tokenizer
from .config import EngineConfig
from .first_pass import FirstPassManager
from .gpu.build import gpu_runner
from .input_processor import InputProcessor
from .model_runner import ModelRunner
from .output_processor import OutputProcessor
from .state_reading import StateReading
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
    refit: QuantizedModel | None


def load_parts(model: str | PathLike[str], config: EngineConfig) -> EngineParts:
    """Loads a model, decomposes it on its device if that was never done, and makes the parts that serve it."""
    checkpoint = resolve_model(model)
    held = HeldWeights.of(config.weights, checkpoint, config.plans_for)
    decomposition = decompose(checkpoint, device=str(config.torch_device))
    tokenizer = Tokenizer(checkpoint.directory)
    shapes = checkpoint.config.adapted_shapes()
    plan = plan_for(
        {name: shapes[name] for name in decomposition.names},
        config.plans_for,
        config.torch_dtype,
        config.max_memory,
        config.max_error,
        config.batch_invariant,
        held.plan,
    )
    max_model_len = _max_model_len(config, checkpoint.config)
    bank = _bank(decomposition, plan, config, held.refit)
    make = _cpu_runner if config.plans_for == "cpu" else gpu_runner
    runner: Runner = make(config, checkpoint, decomposition, plan, bank, max_model_len, held)
    blocks = BlockManager(runner.cache, config.prefix_cache)
    scheduler = Scheduler(blocks, bank, config.max_sequences, config.max_batch_tokens)
    input_processor = InputProcessor(
        tokenizer,
        bank,
        checkpoint.config.vocab_size,
        runner.max_length,
        is_cache_limit=runner.max_length < (config.max_model_len or checkpoint.config.default_max_model_len),
    )
    width = None if config.plans_for == "cpu" else checkpoint.config.hidden_size
    reading = StateReading(bank, checkpoint.config.num_layers, width)
    first_passes = FirstPassManager(config, input_processor, scheduler, bank, reading)
    return EngineParts(
        tokenizer=tokenizer,
        bank=bank,
        input_processor=input_processor,
        first_passes=first_passes,
        scheduler=scheduler,
        blocks=blocks,
        runner=runner,
        output_processor=OutputProcessor(scheduler, first_passes, tokenizer.eos_ids),
        refit=held.refit,
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


def _bank(
    decomposition: Decomposition, plan: Plan, config: EngineConfig, refit: QuantizedModel | None
) -> Bank:
    """The tables of as many slots as the user asks for; ZweaveError if there is no memory for them."""
    try:
        return Bank(
            {name: decomposition.sigma(name) for name in decomposition.names},
            slots=config.slots + 1,
            device=config.torch_device,
            base_digest=decomposition.digest,
            plan=plan,
            max_error=config.max_error,
            components=_component_pool(plan, config),
            scales=None
            if refit is None
            else {name: refit.matrix(name).scale for name in decomposition.names},
        )
    except RuntimeError as error:
        wanted = f"{config.slots} slots and {config.lora_components} lora_components"
        raise ZweaveError(f"no memory for {wanted}: lower them ({str(error).splitlines()[0][:80]})") from None


def _component_pool(plan: Plan, config: EngineConfig) -> ComponentPool | None:
    """The pages of LoRAs; None if the user wants none."""
    if not config.lora_components:
        return None
    shapes = {module: matrix.shape for module, matrix in plan.items()}
    order = ComponentOrder(config.torch_dtype, config.torch_device, for_cpu=config.plans_for == "cpu")
    return ComponentPool(shapes, config.lora_components, config.slots + 1, order)


def _cpu_runner(
    config: EngineConfig,
    checkpoint: Checkpoint,
    decomposition: Decomposition,
    plan: Plan,
    bank: Bank,
    max_model_len: int,
    held: HeldWeights,
) -> Runner:
    """The runner of a CPU, with a cache of the size that the user asks for."""
    assert config.kv_tokens is not None
    num_blocks = config.kv_tokens // config.block_size
    try:
        cache = KVCache(
            checkpoint.config, num_blocks, config.block_size, config.torch_dtype, config.torch_device
        )
    except RuntimeError as error:
        raise ZweaveError(
            f"no memory for {config.kv_tokens} kv_tokens: lower them ({str(error).splitlines()[0][:80]})"
        ) from None
    max_length = min(max_model_len, num_blocks * config.block_size)
    return ModelRunner(config, checkpoint, decomposition, plan, bank, cache, max_length, held)
