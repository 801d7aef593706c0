"""The parts of an engine, and how they are made of a model and a configuration."""

from dataclasses import dataclass
from os import PathLike

from ..checkpoint.checkpoint import resolve_model
from ..checkpoint.model_config import ModelConfig
from ..decomposition.decomposition import Decomposition, decompose
from ..errors import ZweaveError
from ..experts.bank import Bank
from ..kv_cache.block_pool import KVCache
from ..planner.plan import Plan
from ..planner.planner import plan_for
from ..scheduler.block_manager import BlockManager
from ..scheduler.scheduler import Scheduler
from ..text.tokenizer import Tokenizer
from .config import EngineConfig
from .first_pass import FirstPassManager
from .input_processor import InputProcessor
from .model_runner import ModelRunner
from .output_processor import OutputProcessor


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What an engine consists of, in the order in which a request meets it."""

    tokenizer: Tokenizer
    bank: Bank
    input_processor: InputProcessor
    first_passes: FirstPassManager
    scheduler: Scheduler
    blocks: BlockManager
    runner: ModelRunner
    output_processor: OutputProcessor


def load_parts(model: str | PathLike[str], config: EngineConfig) -> EngineParts:
    """Loads a model, decomposes it if that was never done, and makes the parts that serve it."""
    checkpoint = resolve_model(model)
    decomposition = decompose(checkpoint)
    tokenizer = Tokenizer(checkpoint.directory)
    shapes = checkpoint.config.adapted_shapes()
    plan = plan_for(
        {name: shapes[name] for name in decomposition.names},
        config.torch_device.type,
        config.torch_dtype,
        config.max_memory,
        config.max_error,
    )
    bank, cache = _allocate(checkpoint.config, decomposition, plan, config)
    runner = ModelRunner(config, checkpoint, decomposition, plan, bank, cache)
    blocks = BlockManager(cache, config.prefix_cache)
    scheduler = Scheduler(blocks, bank, config.max_sequences, config.max_batch_tokens)
    input_processor = InputProcessor(
        tokenizer,
        bank,
        checkpoint.config.vocab_size,
        runner.max_length,
        is_cache_limit=runner.max_length < (config.max_model_len or checkpoint.config.default_max_model_len),
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


def _allocate(
    model_config: ModelConfig, decomposition: Decomposition, plan: Plan, config: EngineConfig
) -> tuple[Bank, KVCache]:
    """The tables and the cache whose sizes the user sets; ZweaveError if there is no memory for them."""
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
        cache = KVCache(model_config, num_blocks, config.block_size, config.torch_dtype, config.torch_device)
    except RuntimeError as error:
        raise ZweaveError(
            f"no memory for {config.slots} slots and {config.kv_tokens} kv_tokens: lower them "
            f"({str(error).splitlines()[0][:80]})"
        ) from None
    return bank, cache
