"""Fixtures that all tests share."""

import dataclasses
import importlib.util
import json
import os
import shutil
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

# Side by side the workers share the cores, and threads that wait for each other want one of their own each.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

import torch
from hypothesis import settings
from torch import Tensor

from zweave.checkpoint import ModelConfig
from zweave.checkpoint.gguf.grid_file import GridBlocks, write_grids
from zweave.checkpoint.module_name import layer_of
from zweave.checkpoint.pull import pull
from zweave.cli.main import main
from zweave.engine import Engine
from zweave.experts import Expert
from zweave.kernels import GridKind
from zweave.request import Request
from zweave.scheduler import Chunk

# Files and models take longer than hypothesis expects. `pytest --hypothesis-profile=long` looks harder.
settings.register_profile("quick", deadline=None)
settings.register_profile("long", deadline=None, max_examples=5000)
settings.load_profile("quick")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "exhaustive" not in config.option.markexpr:
        exhaustive = [item for item in items if item.get_closest_marker("exhaustive")]
        config.hook.pytest_deselected(items=exhaustive)
        items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]
    if "PYTEST_XDIST_WORKER" in os.environ:
        # The files that take minutes begin first, and short ones fill up the end, so that no worker waits long.
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def user_cache() -> str | None:
    """ZWEAVE_CACHE as it was before the tests: the real models lie there."""
    return os.environ.get("ZWEAVE_CACHE")


@pytest.fixture(scope="session", autouse=True)
def empty_cache(user_cache: str | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps what the tests cache out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZWEAVE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def smollm2(user_cache: str | None) -> Path:
    """The pulled default model."""
    with pytest.MonkeyPatch.context() as patch:
        use_cache(patch, user_cache)
        return pull("smollm2")


@pytest.fixture(scope="module")
def in_user_cache(user_cache: str | None) -> Iterator[None]:
    """Has a module's tests work on the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        use_cache(patch, user_cache)
        yield


def use_cache(patch: pytest.MonkeyPatch, path: str | None) -> None:
    if path is None:
        patch.delenv("ZWEAVE_CACHE")
    else:
        patch.setenv("ZWEAVE_CACHE", path)


@pytest.fixture(scope="session")
def tolerance() -> Callable[[torch.dtype], dict[str, float]]:
    """rtol and atol of a dtype, from tests/tolerances.py, as `torch.testing.assert_close` takes them."""
    spec = importlib.util.spec_from_file_location("tolerances", Path(__file__).with_name("tolerances.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda dtype: dict(zip(("rtol", "atol"), module.TOLERANCES[dtype], strict=True))


@pytest.fixture(scope="session")
def guarded() -> Callable[[Tensor], Tensor]:
    """A copy that lies amid NaN (integers: amid 2**30), so that a read outside it shows in the result."""

    def guard(tensor: Tensor) -> Tensor:
        poison = float("nan") if tensor.is_floating_point() else 2**30
        around = tensor.new_full([size + 8 for size in tensor.shape], poison)
        inner = around[tuple(slice(4, -4) for _ in tensor.shape)]
        inner.copy_(tensor)
        return inner

    return guard


@pytest.fixture
def poisoned_outputs() -> Iterator[None]:
    """Fills what `torch.empty` returns with NaN, so that an element that is never written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads for the rest of a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """Sizes of a model of which only the cache is built."""
    return ModelConfig(
        architecture="llama",
        hidden_size=8,
        intermediate_size=16,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        vocab_size=10,
    )


@pytest.fixture(scope="session")
def random_expert() -> Callable[..., Expert]:
    """An expert for matrices of given shapes whose z lie around 1, far enough to be told apart."""

    def make(
        shapes: Mapping[str, tuple[int, int]], seed: int, first_layer: int = 0, **fields: object
    ) -> Expert:
        generator = torch.Generator().manual_seed(seed)
        z = {
            module: 1 + 0.3 * torch.randn(min(shape), generator=generator)
            for module, shape in shapes.items()
            if layer_of(module) >= first_layer
        }
        return Expert(z=z, first_layer=first_layer, **fields)

    return make


@pytest.fixture(scope="session")
def prompt_logits() -> Callable[..., list[Tensor]]:
    """Logits [tokens, vocabulary] of every token of (token ids, expert) pairs, computed in one batch."""

    def compute(engine: Engine, prompts: Sequence[tuple[list[int], object]]) -> list[Tensor]:
        chunks = []
        for tokens, choice in prompts:
            sequence = engine._prepare(Request(tokens, expert=choice, max_tokens=1))
            sequence.slot = engine.bank.acquire(sequence.mixture)
            sequence.kv.block_table = engine._blocks.take_blocks(engine._runner.cache.blocks_for(len(tokens)))
            chunks.append(Chunk(sequence, 0, len(tokens)))
        batch = engine._runner.prepare(chunks)
        batch = dataclasses.replace(batch, sampled=torch.arange(len(batch.token_ids)))
        logits = engine.model.forward(batch).logits
        for chunk in chunks:
            engine._blocks.return_blocks(chunk.sequence.kv.block_table)
            engine.bank.release(chunk.sequence.slot)
        return list(logits.split([chunk.count for chunk in chunks]))

    return compute


@pytest.fixture(scope="session")
def to_grid() -> Callable[[Path, Path, Callable[[str], GridKind | None]], Path]:
    """`to_grid(source, target, kind_of)`: a copy of a model whose matrices lie on grids, or on none, by their names."""
    import gguf
    from safetensors.numpy import load_file, save_file

    def copy(source: Path, target: Path, kind_of: Callable[[str], GridKind | None]) -> Path:
        shutil.copytree(source, target)
        weights = load_file(target / "model.safetensors")
        grids = []
        for name, values in weights.items():
            if values.ndim == 2 and (kind := kind_of(name)):
                rows = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
                weights[name] = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[kind])
                grids.append(GridBlocks(name, kind, rows.shape, lambda rows=rows: rows))
        save_file(weights, target / "model.safetensors", {"format": "pt"})
        write_grids(target, grids)
        return target

    return copy


@pytest.fixture(scope="session")
def merged_model() -> Callable[..., Any]:
    """transformers' own model of a directory with an expert or mixture merged into its float32 weights.

    The formulas stand here a second time on purpose: W' = U diag(sigma * z) V^T, z = sum of alpha * z_k, and
    the reference's renormalisation sum(sigma) / sum(sigma * z).
    """
    from transformers import AutoModelForCausalLM

    def merge(directory: Path, experts: Mapping[str, Expert], choice: object) -> Any:
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager"
        )
        mixture = {choice: 1.0} if isinstance(choice, str) else dict(choice or {})
        modules = dict.fromkeys(module for name in mixture for module in experts[name].z)
        for module in modules:
            weight = model.get_submodule(module).weight
            u, sigma, vt = torch.linalg.svd(weight.data.double(), full_matrices=False)
            ones = torch.ones_like(sigma)
            z = sum(alpha * experts[name].z.get(module, ones).double() for name, alpha in mixture.items())
            if any(experts[name].renormalise for name in mixture):
                z = z * sigma.sum() / (sigma * z).sum()
            weight.data.copy_((u * (sigma * z)) @ vt)
        return model.eval()

    return merge


@pytest.fixture(scope="session")
def merged_logits(merged_model: Callable[..., Any]) -> Callable[..., Tensor]:
    """Logits [tokens, vocabulary] of one prompt from transformers with merged weights."""

    def compute(directory: Path, experts: Mapping[str, Expert], choice: object, prompt: list[int]) -> Tensor:
        with torch.inference_mode():
            return merged_model(directory, experts, choice)(torch.tensor([prompt])).logits[0]

    return compute


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_model(architecture, dtype=..., max_shard_size=..., **config)`: a random model on disk.

    Written by transformers, with every bias and norm random too, a byte-level tokenizer and a ChatML template;
    a vocabulary of less than 259 tokens leaves out the rarest bytes.
    The same arguments give the same directory.
    """
    written: dict[str, Path] = {}

    def make(
        architecture: str, *, dtype: str = "float32", max_shard_size: str = "1GB", **overrides: object
    ) -> Path:
        key = json.dumps([architecture, dtype, max_shard_size, overrides], sort_keys=True)
        if key not in written:
            directory = tmp_path_factory.mktemp(architecture)
            _write_model(directory, architecture, dtype, max_shard_size, overrides)
            written[key] = directory
        return written[key]

    return make


@pytest.fixture
def tiny_model_and_expert(
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> tuple[str, str]:
    """For commands: a tiny model and the file of a random expert for it, in a cache of their own."""
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path / "cache"))
    model, expert = str(tiny_model("llama")), str(tmp_path / "e.safetensors")
    assert main(["expert", "new", expert, "--random", "0.3", "--model", model]) == 0
    capsys.readouterr()
    return model, expert


@pytest.fixture
def save_lora(tiny_model: Callable[..., Path], tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """`save_lora(name, seed, r=..., ...)`: a random adapter of PEFT, and the model with it merged in."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")

    def save(name: str, seed: int, merge: bool = True, **config: Any) -> tuple[Path, Any]:
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            tiny_model("llama", vocab_size=96), dtype=torch.float32
        )
        options = {"target_modules": "all-linear", "init_lora_weights": False} | config
        adapted = peft.get_peft_model(model, peft.LoraConfig(**options))
        with torch.no_grad():
            for parameter_name, parameter in adapted.named_parameters():
                if "lora_" in parameter_name:
                    parameter.mul_(3)
        adapted.save_pretrained(tmp_path / name)
        return tmp_path / name, adapted.merge_and_unload() if merge else adapted

    return save


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{{ message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def _write_model(
    directory: Path, architecture: str, dtype: str, max_shard_size: str, overrides: dict[str, object]
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes: dict[str, object] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 264,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if architecture == "qwen3":
        sizes["head_dim"] = 16
    config = AutoConfig.for_model(architecture, **{**sizes, **overrides})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=0.2)
    model.to(getattr(torch, dtype)).save_pretrained(directory, max_shard_size=max_shard_size)
    _write_tokenizer(directory, config.vocab_size)


def _write_tokenizer(directory: Path, size: int) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    common = "ĠĊ" + string.ascii_letters + string.digits + string.punctuation
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda c: ((common + c).index(c), c))
    vocabulary = {token: index for index, token in enumerate((special + alphabet)[:size])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": special[0],
        "eos_token": special[2],
        "chat_template": CHATML,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="session")
def tiny_engine(
    tiny_model: Callable[..., Path], random_expert: Callable[..., Expert]
) -> Callable[..., Engine]:
    """An engine on a random Llama with the experts "a", "b" and "late" (which acts from layer 1 on)."""

    def make(dtype: str = "float32", **options: int) -> Engine:
        directory = tiny_model("llama", vocab_size=96)
        engine = Engine(directory, dtype=dtype, **{"kv_tokens": 512, "block_size": 4, **options})
        shapes = ModelConfig.from_directory(directory).adapted_shapes()
        engine.load_expert("a", random_expert(shapes, seed=1))
        engine.load_expert("b", random_expert(shapes, seed=2))
        engine.load_expert("late", random_expert(shapes, seed=3, first_layer=1))
        return engine

    return make
